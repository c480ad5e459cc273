"""Which form of each convolution is fastest on this CPU, and is it the one that mtdml_jax chooses?

    python experiments/benchmarks/benchmark_convolutions.py [--networks ir50 'one face'] [--rounds 3]

For each shape in the networks it times the result and, unless the network only predicts, the gradients
of input and kernel: as XLA computes them, and in the forms that mtdml_jax/models/convolution.py has.
Forms take turns; those that are the same program count as one. Prints a row for each product, with the
ratio of our time and that of the fastest form. Adds rows to results/convolutions.csv.
"""

from functools import partial
from unittest import mock

import jax
import numpy as np
from benchmark_training import CLASSES, Network, make_config
from harness import make_parser, other_processes, table, time_in_turns
from record import record

from mtdml_jax.models import convolution
from mtdml_jax.training.setup import make_training

# Name -> network, batch size.
NETWORKS = {
    'resnet18, 16': (Network(width=16), 64),
    'resnet18, 32': (Network(width=32), 64),
    'resnet18, 64': (Network(width=64), 64),
    'resnet18, 64, cifar': (Network(stem='cifar'), 64),
    'resnet50': (Network('resnet50', side=112, channels=3), 8),
    'ir50': (Network('ir50', side=112, channels=3), 8),
    'dlib, 72 px': (Network('dlib_resnet', side=72), 64),
    'dlib, 104 px': (Network('dlib_resnet', side=104), 64),
    'one face': (Network(width=16), 1),
}
XLA, OURS, NEVER = 'XLA', 'ours', 2**40
# Form -> constants of the module with which it takes this form.
FORMS = {
    OURS: {},
    'Eigen': {'_EIGEN_FORWARD': 0, '_EIGEN_GRADIENT': 0, '_SMALL_MAP': 0, '_TINY_MAP': 0},
    'XLA or Eigen': {'_SMALL_MAP': 0, '_TINY_MAP': 0},
    'one product': {'_SMALL_MAP': NEVER, '_TINY_MAP': NEVER},
    'no blocks': {'_BLOCK_BYTES': NEVER},
    **{f'blocks of {k} MiB': {'_BLOCK_BYTES': k * 2**20, '_WHOLE_BLOCKS': 0} for k in (1, 4, 16)},
}


def shapes_of(network, batch):
    """The convolutions of a network, each once: (shape of x, shape of the kernel, strides, padding)."""
    config, found, real = make_config(network, batch), {}, convolution._convolve
    model, state, _ = make_training(config, np.ones(CLASSES, int), shapes_only=True)
    images = jax.ShapeDtypeStruct((batch, network.side, network.side, network.channels), np.float32)

    def note(x, kernel, *options):
        found[x.shape, kernel.shape, *options] = None
        return real(x, kernel, *options)

    with mock.patch.object(convolution, '_convolve', note):
        jax.eval_shape(model.apply, state.variables, images)
    return [*found]


def products_of(shape_of_x, shape_of_kernel, strides, padding):
    """Product -> (our function, XLA's, their arguments)."""
    draw = np.random.default_rng(0).standard_normal
    x, kernel = (draw(shape, np.float32) for shape in (shape_of_x, shape_of_kernel))
    plain, forward, for_input, for_kernel = (
        partial(getattr(convolution, name), strides=strides, padding=padding)
        for name in ('_by_xla', '_forward_on_cpu', '_gradient_of_input', '_gradient_of_kernel')
    )
    both = x, kernel, draw(jax.eval_shape(plain, x, kernel).shape, np.float32)

    def by_xla(which):
        return lambda x, kernel, gradient: jax.vjp(plain, x, kernel)[1](gradient)[which]

    return {
        'result': (forward, plain, both[:2]),
        'gradient of x': (for_input, by_xla(0), both),
        'gradient of kernel': (for_kernel, by_xla(1), both),
    }


def calls_of(ours, by_xla, arguments):
    """Form -> call that waits for its result. Of forms that are the same program, the first one."""
    arguments, found = jax.device_put(arguments), {}
    for name, constants in {XLA: {}, **FORMS}.items():
        function = by_xla if name == XLA else ours
        with mock.patch.dict(vars(convolution), constants):
            # A new function, so that JAX traces again.
            lowered = jax.jit(lambda *x, function=function: function(*x)).lower(*arguments)
        found.setdefault(lowered.as_text(), (name, lowered.compile()))
    return {
        name: lambda run=run: jax.block_until_ready(run(*arguments)) for name, run in found.values()
    }


def compare(name, rounds):
    """Yields a row for each product of a network."""
    for shapes in shapes_of(*NETWORKS[name]):
        for product, functions in products_of(*shapes).items():
            if product != 'result' and name == 'one face':
                continue
            seconds = time_in_turns(calls_of(*functions), rounds)
            chosen, best = OURS if OURS in seconds else XLA, min(seconds, key=seconds.get)
            row = {'network': name, 'product': product}
            sizes = ('x'.join(map(str, sizes)) for sizes in shapes[:3])
            row |= zip(('x', 'kernel', 'strides'), sizes, strict=True)
            row |= {'chosen': chosen, 'ms': 1e3 * seconds[chosen], 'xla_ms': 1e3 * seconds[XLA]}
            row |= {'fastest': best, 'fastest_ms': 1e3 * seconds[best]}
            yield row | {'ratio': seconds[chosen] / seconds[best]}


def main():
    """Prints the table and adds the rows."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=[*NETWORKS])
    options = parser.parse_args()
    with other_processes():
        rows = (row for name in options.networks for row in compare(name, options.rounds))
        for number, row in enumerate(rows):
            lines = table(row, [row.values()])
            print('\n'.join(lines[2:] if number else lines), flush=True)
            record(options.output, 'convolutions', {**row, 'rounds': options.rounds})


if __name__ == '__main__':
    main()
