"""RAF-DB (7 basic expressions) on a GPU, from weights that were pretrained on faces.

    python -m mtdml_jax train --config=configs/raf_db.py --workdir=runs/raf_db --config.data.dir=DIR \\
        --config.model.pretrained=resnet18_msceleb.pth

DIR must contain EmoLabel/list_patition_label.txt and Image/aligned/, or train/ and test/ with class
folders. Protocol: a tenth of the published train split chooses the checkpoint, and test is read once
at the end. Report the accuracy and the mean class accuracy. To start from random weights, set
`--config.optim.learning_rate=1e-3` and several times the number of steps. We have not run this config
on the real data set.
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default
from mtdml_jax.configs._families import use_family


def get_config() -> ConfigDict:
    """ResNet-18 on 224 px RGB images, about 9 faces of each class in a batch, joint loss, 40 epochs."""
    config = default.get_config()
    use_family(config, 'torchvision')
    config.data.name = 'raf_db'
    config.data.validation_share = 0.1
    config.data.batch_size = 64
    config.augment.erasing = 0.5
    config.model.embedding_size = 512
    config.optim.learning_rate = 3e-4
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.05
    config.train.num_steps = 7000
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.eval.flip = True
    return config
