"""A model with random weights that compiles within a second."""

import jax
import numpy as np

from mtdml_jax.images.pixels import Preprocessing
from mtdml_jax.models import make_network
from mtdml_jax.models.model_file import ModelData, NetworkSettings, Settings
from mtdml_jax.training.state import init_variables

SIDE, SIZE, SLICES = 16, 12, 3
NAMES = ('sad', 'happy')


def model_data(**changes):
    """Returns the content of a model file: 2 classes, 3 slices of size 4, backbone 'resnet4'."""
    network = NetworkSettings(
        'resnet4', 0.0625, 'small', SIZE, SLICES, 'batch', 10.0, True, 'float32'
    )
    settings = Settings(
        format=1,
        network=network,
        preprocessing=Preprocessing(SIDE, 1, False, 0.0, (0.5,), (0.25,)),
        flip=False,
        has_head=True,
        class_names=NAMES,
        thresholds=(0.2, 0.5, 0.8),
        distance='euclidean',
        class_counts=(4, 0),
        gallery_labels=(),
        gallery_names=(),
        measured={},
        trained={},
        license='',
    )._replace(**changes)
    network = make_network(settings.network, len(settings.class_names))
    variables = init_variables(network, 0, (SIDE, SIDE, settings.preprocessing.channels))
    rng = np.random.default_rng(0)
    size = settings.network.embedding_size
    centres = rng.normal(size=(len(settings.class_names), size)).astype(np.float32) / size**0.5
    centres[np.array(settings.class_counts) == 0] = 0
    gallery = np.zeros((0, size), np.float32)
    return ModelData(settings, jax.tree.map(np.asarray, variables), centres, gallery)


def faces(count, seed=0):
    """Returns grey images of different sizes, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (16 + i % 3, 18), np.uint8) for i in range(count)]
