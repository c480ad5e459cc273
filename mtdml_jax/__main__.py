"""Command line: python -m mtdml_jax train --config=FILE --workdir=DIR [--config.key=value ...]."""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from mtdml_jax.compile_cache import use_compile_cache
from mtdml_jax.errors import DivergenceError, UserError, one_line
from mtdml_jax.huge_pages import restart_with_huge_pages

# Commands that run long enough for huge pages to be worth a second start.
TRAINING = ('prepare', 'train', 'evaluate', 'crossval')
# Is there where a driver for NVIDIA's GPUs is loaded.
NVIDIA_DRIVER = '/proc/driver/nvidia/version'


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 2 for wrong input, 3 for a loss that diverged.

    Args:
      argv: arguments without the program's name; by default the process's.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments, overrides = _parser().parse_known_args(argv)
    command = shlex.join(['python', '-m', 'mtdml_jax', *argv])
    try:
        code = arguments.function(arguments, overrides, command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Its reader has seen enough, as `| head` has; nothing is left for the flush at Python's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, DivergenceError) as error:
        if arguments.debug:
            raise
        print(f'mtdml_jax: {one_line(str(error))}', file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3


def _folder(path: str) -> Path:
    """As the shell would have it, which leaves the ~ of --workdir=~/run alone."""
    return Path(path).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m mtdml_jax',
        description='Multi-threshold deep metric learning in JAX and Flax.',
        epilog='Any key of configs/default.py can follow as --config.section.key=value.',
    )
    common, run, configured = (
        argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(3)
    )
    common.add_argument('--debug', action='store_true', help='show the traceback of an error')
    run.add_argument('--workdir', type=_folder, required=True, help='folder of the run')
    configured.add_argument(
        '--config', required=True, help='a config file, or one of the package, such as quickstart'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add_command(name, function, parents, text):
        command = commands.add_parser(
            name, parents=[common, *parents], allow_abbrev=False, help=text
        )
        command.set_defaults(function=function)
        return command

    add_command('prepare', _prepare, [configured], 'prepare the data set that a config names')
    add_command(
        'crossval', _crossval, [run, configured], 'train and test every fold, write the report'
    )
    train = add_command('train', _train, [run, configured], 'train, evaluate, write the report')
    train.add_argument(
        '--distributed',
        nargs='?',
        const='auto',
        metavar='HOST:PORT,NUM,ID',
        help='one of several processes: as Cloud TPU or Slurm tell, or coordinator, number of '
        'processes and number of this one',
    )
    evaluate = add_command('evaluate', _evaluate, [run], 'evaluate a run on a split')
    evaluate.add_argument(
        '--split', help='train, validation, test, ...; default: config.eval.split'
    )
    predict = add_command('predict', _predict, [], 'say what is in images, folders and videos')
    predict.add_argument(
        'paths',
        nargs='+',
        metavar='PATH',
        help="images, videos, folders, patterns ('*.png'); - for a list on standard input",
    )
    predict.add_argument('--model', required=True, help='a model file, or the folder of a run')
    predict.add_argument(
        '--faces',
        default='none',
        help='none: the picture is the face (the default); detect; or a csv file of path,x,y,w,h',
    )
    predict.add_argument(
        '--by',
        choices=('softmax', 'centroid', 'knn'),
        help='default: softmax, or centroid where there is no softmax',
    )
    predict.add_argument(
        '--every', type=int, default=1, metavar='N', help='of videos every N-th frame'
    )
    predict.add_argument(
        '--format',
        choices=('table', 'csv', 'jsonl'),
        help='default: as --out ends; else a table on a terminal, or csv',
    )
    predict.add_argument('--out', type=_folder, metavar='FILE', help='instead of standard output')
    predict.add_argument(
        '--embeddings', type=_folder, metavar='FILE.npy', help='embedding of each row'
    )
    predict.add_argument(
        '--annotate', type=_folder, metavar='DIR', help='copies with the faces marked'
    )
    return parser


def _prepare(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    data = load_config(arguments.config, overrides).data
    _quieten()
    from mtdml_jax.data.prepare import prepare

    info = prepare(data).info
    sizes = ', '.join(f'{name} {split.num_examples:,}' for name, split in info.splits.items())
    print(f'{data.name}: {sizes} images of {", ".join(info.features["label"].names)}')
    return 0


def _crossval(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    config = load_config(arguments.config, overrides)
    _show_devices()
    _quieten()
    from mtdml_jax.evaluation.crossval import cross_validate

    pooled = cross_validate(config, arguments.workdir, command)
    if pooled is None:
        return _say_stopped()
    print(f'{pooled["num_examples"]} images of {pooled["num_folds"]} folds:')
    _print_accuracies(pooled['classifiers'], arguments.workdir)
    return 0


def _train(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    config = load_config(arguments.config, overrides)
    if arguments.distributed:
        _join_processes(arguments.distributed)
    _show_devices()
    _quieten()
    from mtdml_jax.training.loop import train

    if not train(config, arguments.workdir):
        return _say_stopped()
    return _finish(config, arguments.workdir, config.eval.split, command)


def _evaluate(arguments, overrides, command) -> int:
    from mtdml_jax.config import apply_overrides, read_config

    config = apply_overrides(read_config(arguments.workdir), overrides)
    _show_devices()
    _quieten()
    return _finish(config, arguments.workdir, arguments.split or config.eval.split, command)


def _predict(arguments, overrides, command) -> int:
    # argparse has taken the first paths that follow one another.
    paths = arguments.paths + [x for x in overrides if x == '-' or not x.startswith('-')]
    unknown = [x for x in overrides if x not in paths]
    if unknown:
        raise UserError(f'unexpected argument {unknown[0]!r}')
    use_compile_cache()
    from mtdml_jax.inference.command import predict_files

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


def _finish(config, workdir, split, command) -> int:
    """Evaluation and report."""
    from mtdml_jax.evaluation.evaluate import evaluate

    evaluation = evaluate(config, workdir, split, command)
    print(f'{evaluation["num_examples"]} faces of the split {split}:')
    if not evaluation['classifiers']:
        for name, score in evaluation['retrieval'].items():
            print(f'  {name:14s} {score:6.2%}')
    _print_accuracies(evaluation['classifiers'], workdir)
    return 0


def _print_accuracies(classifiers, workdir) -> None:
    for name, scores in classifiers.items():
        low, high = scores['accuracy_ci95']
        print(f'  {name:9s} {scores["accuracy"]:6.2%}  (95 % interval {low:.2%} to {high:.2%})')
    print(f'report: {(workdir / "report.html").absolute()}')


def _say_stopped() -> int:
    print('stopped on request; the same command goes on from here', file=sys.stderr)
    return 0


def _join_processes(where: str) -> None:
    import jax

    try:
        if where == 'auto':
            jax.distributed.initialize()
        else:
            address, number, process = where.split(',')
            jax.distributed.initialize(address, int(number), int(process))
    except ValueError as error:
        reason = f'found {where!r}'
        if where == 'auto':
            reason = f'for nothing here tells it, as Cloud TPU or Slurm would ({error})'
        raise UserError(f'--distributed: expected HOST:PORT,NUM,ID, {reason}') from error


def _show_devices() -> None:
    """Says on which devices the command runs; the first look at them, after processes have joined.

    Raises:
      UserError: JAX finds none of the kind that JAX_PLATFORMS asks for.
    """
    import jax

    try:
        devices = jax.devices()
    except (AssertionError, RuntimeError) as error:  # CUDA's absence is a bare AssertionError.
        asked = os.environ.get('JAX_PLATFORMS', '')
        raise UserError(
            f'JAX finds no device by JAX_PLATFORMS={asked!r} ({str(error) or "not installed"}); unset '
            f'it to use what is there, or install the JAX of your accelerator: jax[cuda12], jax[tpu]'
        ) from error
    if jax.process_index() != 0:
        return
    processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
    kinds = ', '.join(sorted({device.device_kind for device in devices}))
    print(f'{len(devices)} {devices[0].platform} devices{processes}: {kinds}', file=sys.stderr)
    if devices[0].platform == 'cpu' and os.path.exists(NVIDIA_DRIVER):
        print(
            f'JAX uses the CPU, though {NVIDIA_DRIVER} tells of a GPU: pip install "jax[cuda12]"',
            file=sys.stderr,
        )


def _quieten() -> None:
    """Leaves the terminal to what the user asked for; must come before TensorFlow is imported."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    # It only feeds; with oneDNN on it says so at every start, whatever the log level.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ('jax', 'urllib3'):
        logging.getLogger(name).setLevel(logging.ERROR)


def run() -> int:
    """`main` as a process of its own: what `python -m mtdml_jax` and the script `mtdml` do."""
    if sys.argv[1:2] and sys.argv[1] in TRAINING:
        restart_with_huge_pages()
    return main()


if __name__ == '__main__':
    sys.exit(run())
