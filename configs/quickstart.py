"""Synthetic faces on a CPU. This is the first run to try: it ends with a report after a few minutes.

    python -m mtdml_jax train --config=configs/quickstart.py --workdir=runs/quickstart

`make train` runs the same command. Training has not seen the people in the test split.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default


def get_config() -> ConfigDict:
    """ResNet-18 with a quarter of the width, 8 slices, joint loss."""
    config = default.get_config()
    config.data.name = 'synthetic_faces'
    config.data.batch_size = 64
    config.model.width_factor = 0.25
    # Augmentation is weaker than the default, because the drawn faces vary enough, and because brows and
    # lids are only a pixel or two wide.
    config.augment.rotation = 5.0
    config.augment.scale = 0.05
    config.augment.shift = 0.05
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.1
    config.train.num_steps = 800
    config.train.log_every = 20
    config.train.checkpoint_every = 200
    config.train.ema_decay = 0.98
    return config
