"""MMI (6 expressions, about 30 subjects) on a GPU, from weights that know faces.

    python -m mtdml_jax crossval --config=configs/mmi.py --workdir=runs/mmi --config.data.dir=DIR \\
        --config.model.pretrained=resnet18_msceleb.pth

with Sessions/<id>/ (session.xml, S053-001.xml, S053-001.avi) in DIR; faces that were cut out of the
videos as Sessions/<id>/0001.png and so on are better than the avi. Protocol: 3 frames in the middle of
each frontal video, 10 folds by subject. A tenth of the other subjects chooses the checkpoint, and the
fold is tested once. `train` instead of `crossval` runs one fold (`--config.data.fold=3`). From random
weights: `--config.optim.learning_rate=1e-3` and several times the steps. We have not run this config on
the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import ck_plus


def get_config() -> ConfigDict:
    """Like CK+, with about 60 epochs of each fold."""
    config = ck_plus.get_config()
    config.data.name = 'mmi'
    # Some frames show the face twice, from the front and in profile; their middle is between the two.
    config.data.crop = False
    return config
