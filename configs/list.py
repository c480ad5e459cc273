"""Images that your own csv file lists.

    python -m mtdml_jax train --config=configs/list.py --workdir=runs/mine --config.data.dir=FOLDER \\
        --config.data.list=faces.csv

FOLDER/faces.csv has the columns path and label, and may have split, subject, x, y, w, h, query and
gallery. If your columns have other names, set them: `--config.data.columns.path=filename`. Paths are
relative to the folder of the csv file, or else to FOLDER. The docstring of
mtdml_jax/data/sets/image_list.py explains each column. Everything else is as in configs/folder.py: a
tenth of `train` (by subject, if subjects are known) chooses the checkpoint, and `test` is read once at
the end. Without splits, use cross-validation.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import folder


def get_config() -> ConfigDict:
    """Like configs/folder.py: ResNet-18 with half of the width on 112 px images, joint loss."""
    config = folder.get_config()
    config.data.name = 'image_list'
    return config
