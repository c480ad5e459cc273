"""CK+ (7 expressions, 118 subjects) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax crossval --config=configs/ck_plus.py --workdir=runs/ck_plus \\
        --config.data.dir=DIR --config.model.pretrained=resnet18_msceleb.pth

DIR must contain cohn-kanade-images/S005/001/*.png and Emotion/S005/001/*_emotion.txt, or the class
folders of CK+48. Protocol: the last 3 frames of each sequence, 10 folds by subject. A tenth of the
other subjects chooses the checkpoint, and the fold is tested once. `--config.data.variant=6` leaves
out contempt; `6+neutral` and `7+neutral` add the first frames as neutral. `train` instead of
`crossval` runs one fold (`--config.data.fold=3`). To start from random weights, set
`--config.optim.learning_rate=1e-3` and several times the number of steps. We have not run this config
on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """Like RAF-DB, with 40 epochs for each fold."""
    config = raf_db.get_config()
    config.data.name = 'ck_plus'
    config.data.folds = 10
    # Images are cropped to their middle, where the person sits.
    config.data.crop = True
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 500
    config.train.log_every = 10
    config.train.checkpoint_every = 50
    return config
