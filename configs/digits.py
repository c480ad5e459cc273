"""scikit-learn's handwritten digits with the metric loss alone; half a minute on a CPU.

    python -m mtdml_jax train --config=configs/digits.py --workdir=runs/digits

On this easy data set without noise, a triplet loss needs no softmax term. The study of convergence
(docs/results/convergence.md) uses this config. This command retrieves digits that training has
never seen:

    python -m mtdml_jax train --config=configs/digits.py --workdir=runs/unseen_digits \\
        --config.data.heldout_classes="('5', '6', '7', '8', '9')" --config.train.best_metric=map_at_r
"""

from ml_collections import ConfigDict

from mtdml_jax.configs import default


def get_config() -> ConfigDict:
    """ResNet-18 with an eighth of the width, 8 px, 10 images of each digit in a batch, 8 slices."""
    config = default.get_config()
    config.data.name = 'digits'
    config.data.image_size = 8
    config.data.batch_size = 100
    config.augment.flip = 0.0
    config.model.width_factor = 0.125
    config.model.stem = 'cifar'
    config.model.embedding_size = 64
    config.loss.softmax_weight = 0.0
    # With batch-hard mining, all slices collapse at this learning rate.
    config.loss.mining = 'all'
    config.optim.learning_rate = 3e-3
    config.train.num_steps = 300
    config.train.checkpoint_every = 300
    config.train.best_metric = 'knn_accuracy'
    return config
