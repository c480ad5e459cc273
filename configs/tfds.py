"""Any TFDS data set with `image` and `label`: configs/tfds.py:NAME.

    python -m mtdml_jax train --config=configs/tfds.py:cifar10 --workdir=runs/cifar10

TFDS downloads the set if it is not in --config.data.prepared_dir. Files that must be copied by hand
belong in --config.data.dir. A tenth of `train` chooses the checkpoint, and `test` is read once
(set --config.eval.split=NAME if the data set has another name for it).
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default


def get_config(name: str = 'cifar10') -> ConfigDict:
    """ResNet-18 with half of the width on 32 px RGB images."""
    config = default.get_config()
    config.data.name = name
    config.data.validation_share = 0.1
    config.data.image_size = 32
    config.data.channels = 3
    config.train.num_steps = 5000
    config.train.ema_decay = 0.99
    return config
