import json

import numpy as np
import pytest
from sklearn import datasets
from small_data import CONFIG, png

from mtdml_jax.__main__ import main
from mtdml_jax.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('resnet4')]

HELDOUT = tuple(str(digit) for digit in range(5, 10))
IMAGES, DIGITS = (x[:1000] for x in datasets.load_digits(return_X_y=True))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Trains a network on the digits 0 to 4 and tests it on 5 to 9."""
    folder = tmp_path_factory.mktemp('digits')
    for number, (image, digit) in enumerate(zip(IMAGES, DIGITS, strict=True)):
        path = folder / 'digits' / str(digit) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.minimum(16 * image, 255).reshape(8, 8, 1)))
    values = {
        'data.name': 'folder',
        'data.dir': folder / 'digits',
        'data.prepared_dir': folder / 'prepared',
        'data.heldout_classes': HELDOUT,
        'data.validation_share': 0.2,
        'data.image_size': 16,
        'data.batch_size': 40,
        'augment.flip': 0.0,
        'model.backbone': 'resnet4',
        'model.width_factor': 0.5,
        'model.embedding_size': 32,
        'model.num_slices': 4,
        'optim.learning_rate': 0.01,
        'train.num_steps': 80,
        'train.checkpoint_every': 40,
        'train.best_metric': 'map_at_r',
    }
    overrides = [f'--config.{key}={value}' for key, value in values.items()]
    workdir = folder / 'run'
    assert main(['train', f'--config={CONFIG}', f'--workdir={workdir}', *overrides]) == 0
    return workdir


def test_unseen_digits_are_retrieved_far_above_chance_and_not_classified(run):
    evaluation = json.loads((run / 'evaluation.json').read_text())
    assert evaluation['num_examples'] == np.sum(DIGITS >= 5)
    assert evaluation['classifiers'] == {}
    assert 'knn_accuracy' not in evaluation['slices'][0]
    # Chance is 20 %, because there are 5 digits.
    assert evaluation['retrieval']['precision_at_1'] > 0.5
    assert 'Training has seen none of the classes' in (run / 'report.html').read_text()


def test_checkpoint_is_chosen_on_other_images_of_the_trained_digits(run):
    found = [x for x in read_metrics(run / 'metrics.jsonl') if 'validation/map_at_r' in x]
    assert [line['step'] for line in found] == [40, 80]
    assert found[-1]['validation/softmax_accuracy'] > 0.9
