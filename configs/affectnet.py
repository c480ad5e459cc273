"""AffectNet (7 expressions) on a GPU, from weights that know faces.

    python -m mtdml_jax train --config=configs/affectnet.py --workdir=runs/affectnet \\
        --config.data.dir=DIR --config.model.pretrained=resnet18_msceleb.pth

with {train,val}_set/images/ and annotations/ in DIR, or Manually_Annotated_Images/ and
Manually_Annotated_file_lists/; 8 expressions with `--config.data.variant=8`. Protocol: a fiftieth of
train (5,700 faces) chooses the checkpoint; the published validation set is the test split, read once at
the end. Images stay on disk and are read by 16 at a time: whole images (the second layout) should first
be made smaller, or decoding them decides the speed. Not run here on the real set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import raf_db


def get_config() -> ConfigDict:
    """As RAF-DB, about 18 faces of each class in a batch, 10 epochs."""
    config = raf_db.get_config()
    config.data.name = 'affectnet'
    config.data.in_memory = False
    config.data.validation_share = 0.02
    # Around the box, which only the second layout has; the images of the first are square.
    config.data.crop = True
    config.data.batch_size = 128
    config.train.num_steps = 22_000
    config.train.log_every = 100
    config.train.checkpoint_every = 2000
    return config
