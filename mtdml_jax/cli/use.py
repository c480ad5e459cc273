"""The commands that use a trained model: export, predict and demo."""

import sys

from mtdml_jax.cli.command import Command, path_argument
from mtdml_jax.host.compile_cache import use_compile_cache
from mtdml_jax.host.errors import UserError
from mtdml_jax.host.process import find_devices, quieten

# What --model takes.
MODEL = 'a model file, the folder of a run, or a model of the package, such as fer2013'


def _add_demo(parser):
    parser.add_argument(
        '--model',
        action='append',
        help=f'{MODEL}; may be given several times; default: all models of the package',
    )
    parser.add_argument('--host', default='127.0.0.1', help='default: this machine alone')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument(
        '--faces',
        choices=('detect', 'none'),
        default='detect',
        help='none: the whole picture is the face',
    )


def _add_export(parser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--workdir', type=path_argument, help='folder of an evaluated run')
    source.add_argument('--model', help=f'{MODEL}, to write it in another format')
    parser.add_argument('--out', type=path_argument, required=True, metavar='FILE')
    parser.add_argument(
        '--format',
        choices=('safetensors', 'onnx', 'stablehlo'),
        help='default: by the ending of --out, or safetensors',
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='type of the weights in the file',
    )
    parser.add_argument(
        '--slices',
        metavar='K',
        help="the K best on the validation split, or their numbers: '0,3,5'",
    )
    parser.add_argument('--license', metavar='TEXT', help='what the licence of the data allows')


def _add_predict(parser):
    from mtdml_jax.models.classifiers import CLASSIFIERS

    parser.add_argument(
        'paths',
        nargs='+',
        metavar='PATH',
        help="images, videos, folders, patterns ('*.png'); - reads paths from standard input",
    )
    parser.add_argument('--model', required=True, help=MODEL)
    parser.add_argument(
        '--faces',
        default='none',
        help='none: the whole picture is the face (default); detect; or a csv file of path,x,y,w,h',
    )
    parser.add_argument(
        '--by',
        choices=CLASSIFIERS,
        help='default: softmax, or centroid if the model has no softmax',
    )
    parser.add_argument(
        '--every', type=int, default=1, metavar='N', help='read every N-th frame of a video'
    )
    parser.add_argument(
        '--format',
        choices=('table', 'csv', 'jsonl'),
        help='default: by the ending of --out; else a table on a terminal, or csv',
    )
    parser.add_argument(
        '--out', type=path_argument, metavar='FILE', help='output file; default: standard output'
    )
    parser.add_argument(
        '--embeddings',
        type=path_argument,
        metavar='FILE.npy',
        help='file for the embedding of each row',
    )
    parser.add_argument(
        '--annotate',
        type=path_argument,
        metavar='DIR',
        help='folder for copies with the faces marked',
    )


def _export(arguments, overrides, command) -> int:
    find_devices()
    is_smaller = arguments.slices is not None or arguments.dtype != 'float32'
    if is_smaller and not arguments.workdir:
        raise UserError(
            '--model: --slices and --dtype are measured on the data of a run; give --workdir=RUN'
        )
    if overrides and not is_smaller:
        raise UserError(f'unexpected argument {overrides[0]!r}')
    style = arguments.format or {'.onnx': 'onnx', '.stablehlo': 'stablehlo'}.get(
        arguments.out.suffix, 'safetensors'
    )
    from mtdml_jax.inference import runtimes
    from mtdml_jax.inference.find import find_model
    from mtdml_jax.models import model_file

    data = model_file.read_model(find_model(arguments.workdir or arguments.model))
    if is_smaller:
        from mtdml_jax.config import apply_overrides, read_config

        config = apply_overrides(read_config(arguments.workdir), overrides)
        quieten()
        from mtdml_jax.reports.export import shrink

        data = shrink(config, data, slices=_parse_slices(arguments.slices), dtype=arguments.dtype)
    if arguments.license is not None:
        data = data._replace(settings=data.settings._replace(license=arguments.license))
    if style == 'safetensors':
        model_file.write_model(arguments.out, data, arguments.dtype)
    else:
        write = {'onnx': runtimes.write_onnx, 'stablehlo': runtimes.write_stablehlo}[style]
        write(data, arguments.out)
    print(f'{arguments.out}: {arguments.out.stat().st_size:,} bytes, {_describe(data.settings)}')
    return 0


def _parse_slices(text) -> int | list[int] | None:
    """Parses a number of slices ('4') or the numbers of chosen slices ('0,3,5' or '3,')."""
    try:
        if text is None or ',' not in text:
            return text and int(text)
        return [int(number) for number in text.split(',') if number]
    except ValueError as error:
        raise UserError(
            f'--slices: expected a number or a list like 0,3,5, found {text!r}'
        ) from error


def _describe(settings) -> str:
    scores = settings.measured.get('classifiers', {})
    accuracies = ', '.join(f'{name} {value["accuracy"]:.2%}' for name, value in scores.items())
    text = f'{settings.network.num_slices} slices'
    return f'{text}; on {settings.measured["split"]}: {accuracies}' if accuracies else text


def _predict(arguments, overrides, command) -> int:
    # argparse takes only the first group of consecutive paths; the rest are in `overrides`.
    paths = arguments.paths + [x for x in overrides if x == '-' or not x.startswith('-')]
    unknown = [x for x in overrides if x not in paths]
    if unknown:
        raise UserError(f'unexpected argument {unknown[0]!r}')
    find_devices()
    use_compile_cache()
    from mtdml_jax.inference.predict import predict_files

    counts = predict_files(
        paths,
        arguments.model,
        faces=arguments.faces,
        by=arguments.by,
        every=arguments.every,
        style=arguments.format,
        out=arguments.out,
        embeddings=arguments.embeddings,
        annotate=arguments.annotate,
    )
    print(counts.describe(), file=sys.stderr)
    return 0 if counts.pictures else 2


def _demo(arguments, overrides, command) -> int:
    if overrides:
        raise UserError(f'unexpected argument {overrides[0]!r}')
    find_devices()
    use_compile_cache()
    from mtdml_jax.demo.page import serve
    from mtdml_jax.inference.faces import find_faces

    detect = find_faces if arguments.faces == 'detect' else None
    serve(_load_models(arguments.model), arguments.host, arguments.port, detect)
    return 0


def _load_models(names):
    """Loads the models that the page offers; without names those of the package, the best one first."""
    from mtdml_jax.demo.page_session import measured_accuracy
    from mtdml_jax.inference.find import shipped_models
    from mtdml_jax.inference.model import load

    if names:
        return {name: load(name) for name in names}
    models = {name: load(path) for name, path in shipped_models().items()}
    if not models:
        raise UserError('the package has no models: --model=MODEL names one')
    return dict(sorted(models.items(), key=lambda item: -(measured_accuracy(item[1]) or 0)))


EXPORT = Command(_export, 'write the model of a run as one file', _add_export)
PREDICT = Command(_predict, 'classify the faces in images, folders and videos', _add_predict)
DEMO = Command(_demo, 'serve a web page to try a model in the browser', _add_demo)
