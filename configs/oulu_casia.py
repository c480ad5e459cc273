"""Oulu-CASIA (6 expressions, 80 subjects) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax crossval --config=configs/oulu_casia.py --workdir=runs/oulu_casia \\
        --config.data.dir=DIR --config.model.pretrained=resnet18_msceleb.pth

DIR must contain OriginalImg/VL/Strong/P001/Anger/000.jpeg and so on, which are 320x240 images. The
data set's own crops in PreProcess_Img/VL_Acropped/ show the face much larger; select them with
`--config.data.variant=VL_Strong_cropped`. Protocol: the last 3 frames of each sequence, 10 folds by
subject. Each fold is tested with the last weights of a run on the other folds, so nothing is chosen on
the test faces. `train` instead of `crossval` runs one fold (`--config.data.fold=3`). We have not run
this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """Like RAF-DB: about 11 faces of each class in a batch, 40 epochs of 72 subjects for each fold."""
    config = raf_db.get_config()
    config.data.name = 'oulu_casia'
    config.data.validation_share = 0.0
    config.data.folds = 10
    # Images are cropped to their middle, where the person sits.
    config.data.crop = True
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 800
    config.train.log_every = 20
    config.train.checkpoint_every = 200
    config.eval.checkpoint = 'latest'
    return config
