"""FER2013 on a GPU, with a target of 73 % or more. We have not run this config or measured its time.

    python -m mtdml_jax train --config=configs/fer2013_gpu.py --workdir=runs/fer2013_gpu \\
        --config.data.dir=DIR

DIR must contain fer2013.csv, fer2013.csv.gz or icml_face_data.csv. The first stage keeps all 48x48
pixels, the network has its full width, SGD runs for 300 epochs, augmentation is stronger, and the
evaluation averages each image with its mirror image. PublicTest is the validation split. Only
`evaluate --split=test` reads PrivateTest, if the file has it.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import fer2013


def get_config() -> ConfigDict:
    """ResNet-18 with full width and full-size maps, batch-hard, 300 epochs."""
    config = fer2013.get_config()
    config.data.early_share = 0.0
    config.data.batch_size = 128
    config.augment.rotation = 15.0
    config.augment.scale = 0.1
    config.augment.shift = 0.08
    config.augment.erasing = 0.5
    config.model.width_factor = 1.0
    config.model.stem = 'cifar'
    config.model.embedding_size = 512
    config.optim.name = 'sgd'
    config.optim.learning_rate = 0.1
    config.optim.warmup = 0.02
    config.optim.weight_decay = 5e-4
    config.train.num_steps = 67_000
    config.train.checkpoint_every = 3350
    config.train.ema_decay = 0.9995
    return config
