"""Multi-threshold deep metric learning in JAX: the functional API.

The loss cuts an embedding into slices. Every slice learns the (dual) triplet loss at its own threshold
with batch-hard mining, so nobody has to search for "the" threshold. It follows Yang et al.,
"Multi-threshold deep metric learning for facial expression recognition", Pattern Recognition 156 (2024)
110711.

`import mtdml_jax` imports jax and nothing heavier. `python -m mtdml_jax` trains. `load` loads a trained
model:

    model = mtdml_jax.load('models/fer2013.safetensors')
    model.predict('face.png').names
"""

from typing import TYPE_CHECKING

from mtdml_jax.loss.memory import Memory, empty_memory, remember
from mtdml_jax.loss.microbatch import embed_in_parts
from mtdml_jax.loss.mining import Triplets, mine_batch_hard
from mtdml_jax.loss.multi_threshold import LossAux, multi_threshold_loss
from mtdml_jax.loss.slicing import merge_slices, split_slices
from mtdml_jax.loss.thresholds import sample_thresholds, threshold_range
from mtdml_jax.loss.triplets import dual_triplet_loss, triplet_loss

if TYPE_CHECKING:
    from pathlib import Path

    from mtdml_jax.inference.model import Model


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
