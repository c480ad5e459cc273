"""AffectNet (7 expressions) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax train --config=configs/affectnet.py --workdir=runs/affectnet \\
        --config.data.dir=DIR --config.model.pretrained=resnet18_msceleb.pth

DIR must contain {train,val}_set/images/ and annotations/, or Manually_Annotated_Images/ and
Manually_Annotated_file_lists/. `--config.data.variant=8` selects 8 expressions. Protocol: a fiftieth of
train (5,700 faces) chooses the checkpoint. The published validation set is the test split, which is read
once at the end. Images stay on disk, and 16 are read at a time. Shrink whole images (the second layout)
beforehand; otherwise decoding limits the speed. We have not run this config on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """Like RAF-DB, with about 18 faces of each class in a batch and 10 epochs."""
    config = raf_db.get_config()
    config.data.name = 'affectnet'
    config.data.in_memory = False
    config.data.validation_share = 0.02
    # Images of the second layout are cropped around the face box. Images of the first layout are square.
    config.data.crop = True
    config.data.batch_size = 128
    config.train.num_steps = 22_000
    config.train.log_every = 100
    config.train.checkpoint_every = 2000
    return config
