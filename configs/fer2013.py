"""FER2013 on a CPU of 2 cores, in an hour.

    python -m mtdml_jax train --config=configs/fer2013.py --workdir=runs/fer2013 --config.data.dir=DIR

DIR must contain fer2013.csv, fer2013.csv.gz or icml_face_data.csv. PublicTest is the validation split.
Only `evaluate --split=test` reads PrivateTest, if the file has it.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default


def get_config() -> ConfigDict:
    """ResNet-18 with a quarter of the width, full-size maps, batch-hard, 33 epochs."""
    config = default.get_config()
    config.data.name = 'fer2013'
    # The first 70 % of the steps use 32 px images and are twice as fast.
    config.data.early_share = 0.7
    config.data.batch_size = 64
    config.data.sampling = 'instance'
    # Half of the default warp: these faces are aligned, and a larger warp slows training down.
    config.augment.rotation = 5.0
    config.augment.scale = 0.05
    config.augment.shift = 0.04
    config.model.width_factor = 0.25
    config.model.stem = 'cifar'
    config.loss.label_smoothing = 0.1
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.5
    config.train.num_steps = 15_000
    config.train.log_every = 50
    config.train.checkpoint_every = 5000
    config.train.ema_decay = 0.999
    config.eval.split = 'validation'
    config.eval.flip = True
    # The learning rate ends at 0, so we evaluate the last weights. PublicTest does not choose them.
    config.eval.checkpoint = 'latest'
    return config
