"""Models with random weights for the tests of other runtimes, and the outputs of `Model.predict`.

`test_runtimes.py` compares StableHLO with these outputs, `tests/environments/parity_onnx.py` ONNX.
"""

import jax
import numpy as np
from small_model import NAMES, SIDE, SIZE, SLICES, model_data

from mtdml_jax.images.pixels import Preprocessing
from mtdml_jax.inference.model import Model
from mtdml_jax.models.model_file import NetworkSettings

COUNTS = (1, 3, 64)
NETWORK = NetworkSettings('resnet4', 0.0625, 'small', SIZE, SLICES, 'batch', 10.0, True, 'float32')
COLOUR = Preprocessing(SIDE, 3, False, 0.0, (0.5, 0.4, 0.3), (0.25, 0.3, 0.2))
# Name -> (settings, settings of the network).
CASES = {
    'grey': ({'class_names': ('f\xe9roce "x"\n', *NAMES[1:]), 'gallery_names': ('Ann',)}, {}),
    'colour with flip': (
        {'preprocessing': COLOUR, 'flip': True},
        {'stem': 'imagenet', 'embedding_norm': 'none', 'learn_logit_scale': False},
    ),
    'grey with flip, without classifiers': ({'flip': True, 'has_head': False}, {}),
}


def make_case(name, **network):
    """Returns (content of a model file, images uint8 [64, side, side, channels], outputs by name)."""
    settings, changes = CASES[name]
    network = NETWORK._replace(**changes, **network)
    data = model_data(network=network, **settings)
    rng = np.random.default_rng(1)
    # BatchNorm's statistics start at 0 and 1. Those values would hide a forgotten statistic.
    variables = jax.tree.map(
        lambda x: x + rng.uniform(-0.5, 0.5, x.shape).astype(np.float32), data.variables
    )
    data = data._replace(variables=variables)
    # The patterns are coarse, because noise of single pixels would average out.
    shape = (max(COUNTS), SIDE // 4, SIDE // 4, data.settings.preprocessing.channels)
    images = rng.integers(0, 256, shape, np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    return data, images, predict(data, images)


def predict(data, images):
    """Returns output name -> array of the model's prediction."""
    found = Model(data).predict(images)
    names = ['embeddings']
    if data.settings.has_head:
        names += ['probabilities', 'slice_probabilities']
    return {name: getattr(found, name) for name in names}
