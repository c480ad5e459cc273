"""FER2013 on a CPU of 2 cores, in an hour, from dlib's network for face recognition.

    pip install face_recognition_models==0.3.0
    python -m mtdml_jax train --config=configs/fer2013_pretrained.py --workdir=runs/fer2013 \\
        --config.data.dir=DIR

DIR is that of fer2013.py. Training rows that are also in PublicTest are left out.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import fer2013
from mtdml_jax.configs._families import use_family


def get_config() -> ConfigDict:
    """dlib's network on grey faces of 104 px, batch-hard, 22 epochs."""
    config = fer2013.get_config()
    use_family(config, 'dlib_grey')
    config.model.pretrained = 'dlib'
    config.data.drop_leaks = True
    # FER2013 cuts faces closely. At this side they are as large as in dlib's images of 150 px. A start
    # with smaller images would change their scale.
    config.data.image_size = 104
    config.data.early_share = 0.0
    config.augment.rotation = 10.0
    config.augment.scale = 0.1
    config.augment.erasing = 0.25
    # A step takes two thirds of the time without gradients of the first layers, which serve any face.
    config.optim.frozen = '^backbone/(Conv_0|BatchNorm_0|Block_[0-2])/'
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 0.2
    config.train.num_steps = 9600
    config.train.checkpoint_every = 1200
    return config
