"""Any folder of images: <split>/<class>/<image>, or <class>/<image>.

    python -m mtdml_jax train --config=configs/folder.py --workdir=runs/mine --config.data.dir=FOLDER

Classes are the names of the folders. With splits, a tenth of `train` (by subject, if
--config.data.subject_pattern='regular expression' finds one in the paths) chooses the checkpoint, and
`test` is read once at the end. Without splits, use cross-validation:

    python -m mtdml_jax crossval --config=configs/folder.py --workdir=runs/mine \\
        --config.data.dir=FOLDER --config.data.folds=5

If `test` has classes that training does not have, the evaluation scores retrieval instead of
classification. --config.data.heldout_classes="('name', 'name')" removes classes from training.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default


def get_config() -> ConfigDict:
    """ResNet-18 with half of the width on 112 px images, groups of 4 faces of a class, joint loss."""
    config = default.get_config()
    config.data.name = 'folder'
    config.data.validation_share = 0.1
    config.data.image_size = 112
    config.data.channels = 3
    config.data.crop = True
    config.data.batch_size = 64
    config.model.stem = 'imagenet'
    config.train.num_steps = 2000
    config.train.ema_decay = 0.99
    return config
