"""Meshes and shardings on which the loss is tested, and the table of docs/loss.md about them.

    python tests/helpers/mesh_cases.py

writes the table anew, on eight emulated devices. For one device it counts the products of mining in the
traced program, and the bytes of the arrays that collectives hand to it in the compiled program.
"""

import math
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).absolute().parents[2] / 'experiments' / 'benchmarks'))
if __name__ == '__main__':
    os.environ['JAX_NUM_CPU_DEVICES'] = '8'

import jax
import jax.numpy as jnp
import numpy as np
import scaling
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from pages import ROOT

from mtdml_jax import multi_threshold_loss

PAGE = ROOT / 'docs' / 'loss.md'
MESHES = {'8': ((8,), ('data',)), '4 x 2': ((4, 2), ('data', 'model')), '1': ((1,), ('data',))}
# The batch of the table.
BATCH, SIZE, NUM_SLICES = 1024, 512, 8
COLLECTIVES = ('all-to-all', 'all-gather')


class Case(NamedTuple):
    """A mesh, how embeddings lie on it, and whether the loss is called in a `shard_map` over data."""

    kind: str
    mesh: str
    spec: P
    in_shard_map: bool = False

    def make_mesh(self):
        shape, names = MESHES[self.mesh]
        kinds = (getattr(AxisType, self.kind),) * len(shape)
        devices = jax.devices()[: math.prod(shape)]
        return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)

    def place(self, embeddings, *rows):
        """Returns embeddings [B, E] and arrays of rows [B] on the mesh."""
        mesh = self.make_mesh()
        by_rows = NamedSharding(mesh, P(*self.spec[:1]))
        return jax.device_put(embeddings, NamedSharding(mesh, self.spec)), *(
            jax.device_put(x, by_rows) for x in rows
        )

    def wrap(self, loss):
        """Returns `loss`, a function of arrays of rows, mapped over data if the case says so."""
        if not self.in_shard_map:
            return loss
        return jax.shard_map(
            partial(loss, axis_name='data'),
            mesh=self.make_mesh(),
            in_specs=P('data'),
            out_specs=P(),
            axis_names={'data'},
        )


SPECS = {
    '8': (P('data'), P(None, 'data'), P()),
    '4 x 2': (P('data'), P(None, 'model'), P('data', 'model'), P()),
    '1': (P('data'), P(None, 'data'), P()),
}
CASES = [
    Case(kind, mesh, spec)
    for kind in ('Explicit', 'Auto')
    for mesh, specs in SPECS.items()
    for spec in specs
]
IN_SHARD_MAP = [
    Case('Explicit', '8', P('data'), in_shard_map=True),
    Case('Explicit', '4 x 2', P('data', 'model'), in_shard_map=True),
]

TABLE = [*IN_SHARD_MAP, *(case for case in CASES if case.mesh != '1')]


def work(case):
    """Returns (FLOP, {collective: bytes}) of a device for loss and gradient of the table's batch."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(BATCH, SIZE)).astype(np.float32)
    arrays = case.place(embeddings, rng.integers(0, 7, BATCH))
    thresholds = jnp.linspace(0.2, 1.3, NUM_SLICES)

    def loss(embeddings, labels, **options):
        return multi_threshold_loss(embeddings, labels, thresholds, **options)[0]

    step = jax.jit(jax.value_and_grad(case.wrap(loss)))
    products = scaling.work(jax.make_jaxpr(step)(*arrays).jaxpr, jax.device_count())['products']
    return products, _received(step.lower(*arrays).compile().as_text())


def _received(program):
    """Returns {collective: bytes of floats that it hands to a device} of a compiled program."""
    found = dict.fromkeys(COLLECTIVES, 0)
    for result, kind in re.findall(rf'= (.*?) ({"|".join(COLLECTIVES)})\(', program):
        sizes = re.findall(r'f32\[([\d,]+)\]', result)
        found[kind] += sum(4 * math.prod(map(int, size.split(','))) for size in sizes)
    return found


def table():
    """Returns the lines of the table of docs/loss.md."""
    lines = [
        '| Mesh | Embeddings | Call | Products | All-to-all | All-gather |',
        '|---|---|---|---|---|---|',
    ]
    return lines + [row(case) for case in TABLE]


def row(case):
    """Returns the line of a case."""
    whole = 2 * NUM_SLICES * BATCH**2 * (SIZE // NUM_SLICES)
    products, moved = work(case)
    axes = ', '.join(map(repr, case.spec))
    call = '`shard_map`, `axis_name`' if case.in_shard_map else 'plain `jit`'
    moves = ' | '.join(f'{moved[kind] / 2**20:.2g} MiB' for kind in COLLECTIVES)
    return f'| {case.kind}, {case.mesh} | `P({axes})` | {call} | 1/{whole / products:g} | {moves} |'


def main():
    before, rest = PAGE.read_text().split('<!-- table: meshes -->\n')
    _, after = rest.split('<!-- end of table -->')
    lines = '\n'.join(table())
    PAGE.write_text(f'{before}<!-- table: meshes -->\n{lines}\n<!-- end of table -->{after}')


if __name__ == '__main__':
    main()
