"""Multi-threshold deep metric learning in JAX: the functional API.

An embedding is cut into slices; every slice learns the (dual) triplet loss at its own threshold with
batch-hard mining, so that nobody has to search for "the" threshold. After Yang et al., "Multi-threshold
deep metric learning for facial expression recognition", Pattern Recognition 156 (2024) 110711.

Importing this package imports jax and nothing heavier; training lives in `mtdml_jax.training` and
`python -m mtdml_jax`. What was trained is used by `load`:

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


# What it takes is imported by it alone: flax and safetensors, pip install '.[predict]'.
def load(path: 'str | Path') -> 'Model':
    """Loads a trained model: `mtdml_jax.inference.model.load`."""
    try:
        from mtdml_jax.inference.model import load
    except ModuleNotFoundError as error:
        error.add_note("mtdml_jax.load takes more than the loss does: pip install '.[predict]'")
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
