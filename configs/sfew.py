"""SFEW 2.0 (7 expressions) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax train --config=configs/sfew.py --workdir=runs/sfew --config.data.dir=DIR \\
        --config.model.pretrained=resnet18_msceleb.pth

DIR must contain Train_Aligned_Faces/<Class>/ and Val_Aligned_Faces/<Class>/.
`--config.data.variant=original` reads the whole frames in Train/ and Val/ instead. Protocol: a tenth of
train chooses the checkpoint. The published validation set is the test split, because the labels of the
published test set are closed; it is read once at the end. Train has only 958 faces, so weights from a
larger set of expressions help most. We have not run this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """Like RAF-DB, with 75 epochs of the small train split."""
    config = raf_db.get_config()
    config.data.name = 'sfew'
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 1000
    config.train.log_every = 20
    config.train.checkpoint_every = 100
    return config
