"""FER+ (8 expressions, ten votes each) on a CPU of 2 cores.

    python -m mtdml_jax train --config=configs/ferplus.py --workdir=runs/ferplus --config.data.dir=DIR

DIR must contain fer2013new.csv and fer2013.csv, or FER2013{Train,Valid,Test}/ with label.csv and
images. Protocol: labels are majority votes, PublicTest chooses the checkpoint, and PrivateTest is read
once at the end. `--config.data.variant=soft` learns from the shares of the votes instead. To start
from weights that were pretrained on faces (`--config.model.pretrained=resnet18_msceleb.pth`) on a GPU,
set early_share to 0 and copy image_size, channels, mean, std and the sections model and optim from
configs/ck_plus.py. We have not run this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import fer2013


def get_config() -> ConfigDict:
    """Like FER2013: an hour on a CPU of 2 cores, about 36 epochs of the faces of variant `majority`."""
    config = fer2013.get_config()
    config.data.name = 'ferplus'
    config.eval.split = 'test'
    config.eval.checkpoint = 'best'
    return config
