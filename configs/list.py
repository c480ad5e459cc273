"""Images that a csv file of one's own lists.

    python -m mtdml_jax train --config=configs/list.py --workdir=runs/mine --config.data.dir=FOLDER \\
        --config.data.list=faces.csv

FOLDER/faces.csv has the columns path and label, and where it has them split, subject, x, y, w, h, query
and gallery; if yours are called otherwise, say so: `--config.data.columns.path=filename`. Paths go from
the folder of the csv file, or else from FOLDER. What each column means is told in the docstring of
mtdml_jax/data/sets/image_list.py. Everything else is as in configs/folder.py: a tenth of `train` (by
subject, if subjects are known) chooses the checkpoint, and `test` is read once at the end; without
splits, cross-validate.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import folder


def get_config() -> ConfigDict:
    """As any folder: ResNet-18 of half width on 112 px, joint loss."""
    config = folder.get_config()
    config.data.name = 'image_list'
    return config
