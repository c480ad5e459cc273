"""Multi-threshold deep metric learning in JAX: the functional API.

The loss cuts an embedding into slices. Every slice learns the (dual) triplet loss at its own threshold
with batch-hard mining, so nobody has to search for "the" threshold. It follows Yang et al.,
"Multi-threshold deep metric learning for facial expression recognition", Pattern Recognition 156 (2024)
110711.

`import mtdml_jax` imports nothing heavy: the first use of a name imports jax, and `load` also flax.
`python -m mtdml_jax` trains. `load` loads a trained model:

    model = mtdml_jax.load('fer2013')
    model.predict('face.png').names
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mtdml_jax.inference.model import Model
    from mtdml_jax.loss.memory import Memory, empty_memory, remember
    from mtdml_jax.loss.microbatch import embed_in_parts
    from mtdml_jax.loss.mining import Triplets, mine_batch_hard
    from mtdml_jax.loss.multi_threshold import LossAux, multi_threshold_loss
    from mtdml_jax.loss.slicing import merge_slices, split_slices
    from mtdml_jax.loss.thresholds import sample_thresholds, threshold_range
    from mtdml_jax.loss.triplets import dual_triplet_loss, triplet_loss
else:
    # The command line restarts Python before it imports jax, which takes most of a second.
    _HOMES = {
        **dict.fromkeys(('Memory', 'empty_memory', 'remember'), 'memory'),
        'embed_in_parts': 'microbatch',
        **dict.fromkeys(('Triplets', 'mine_batch_hard'), 'mining'),
        **dict.fromkeys(('LossAux', 'multi_threshold_loss'), 'multi_threshold'),
        **dict.fromkeys(('merge_slices', 'split_slices'), 'slicing'),
        **dict.fromkeys(('sample_thresholds', 'threshold_range'), 'thresholds'),
        **dict.fromkeys(('dual_triplet_loss', 'triplet_loss'), 'triplets'),
    }

    def __getattr__(name):
        if name == 'loss':
            return importlib.import_module(f'{__name__}.loss')
        if name not in _HOMES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        found = getattr(importlib.import_module(f'{__name__}.loss.{_HOMES[name]}'), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *_HOMES})


# `load` alone imports flax and safetensors, which the extra [predict] installs.
def load(path: 'str | Path') -> 'Model':
    """Loads a trained model; see `mtdml_jax.inference.model.load`."""
    try:
        from mtdml_jax.inference.model import load
    except ModuleNotFoundError as error:
        error.add_note("mtdml_jax.load needs more packages than the loss: pip install '.[predict]'")
        raise

    return load(path)


__version__ = '0.1.0'

__all__ = [
    'LossAux',
    'Memory',
    'Triplets',
    'dual_triplet_loss',
    'embed_in_parts',
    'empty_memory',
    'load',
    'merge_slices',
    'mine_batch_hard',
    'multi_threshold_loss',
    'remember',
    'sample_thresholds',
    'split_slices',
    'threshold_range',
    'triplet_loss',
]
