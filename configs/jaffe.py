"""JAFFE (7 expressions, 10 subjects) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax crossval --config=configs/jaffe.py --workdir=runs/jaffe --config.data.dir=DIR \\
        --config.model.pretrained=resnet18_msceleb.pth

DIR must contain KA.AN1.39.tiff and so on, in any subfolder. Protocol: each subject is left out once,
and its faces are tested with the last weights of a run on the other subjects. Nothing is chosen on the
test faces. `train` instead of `crossval` runs one of the folds (`--config.data.fold=3`). We have not
run this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """Like RAF-DB, with 100 epochs of 9 subjects for each of the 10 folds."""
    config = raf_db.get_config()
    config.data.name = 'jaffe'
    config.data.validation_share = 0.0
    config.data.folds = -1
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 300
    config.train.log_every = 20
    config.train.checkpoint_every = 100
    config.eval.checkpoint = 'latest'
    return config
