"""MMI (6 expressions, about 30 subjects) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax crossval --config=configs/mmi.py --workdir=runs/mmi --config.data.dir=DIR \\
        --config.model.pretrained=resnet18_msceleb.pth

DIR must contain Sessions/<id>/ (session.xml, S053-001.xml, S053-001.avi). Crops of the faces as
Sessions/<id>/0001.png and so on are better than the avi. Protocol: the 3 frames in the middle of each
frontal video, 10 folds by subject. A tenth of the other subjects chooses the checkpoint, and the fold is
tested once. `train` instead of `crossval` runs one fold (`--config.data.fold=3`). To start from random
weights, set `--config.optim.learning_rate=1e-3` and several times the number of steps. We have not run
this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import ck_plus


def get_config() -> ConfigDict:
    """Like CK+, with about 60 epochs of each fold."""
    config = ck_plus.get_config()
    config.data.name = 'mmi'
    # Some frames show the face twice, frontal and in profile. Their middle is between the two.
    config.data.crop = False
    return config
