import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import CONFIG

from mtdml_jax.__main__ import main
from mtdml_jax.config import load_config
from mtdml_jax.data import face_drawing
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.reports.crossval import pool_folds, with_fold
from mtdml_jax.training import checkpoints

pytestmark = pytest.mark.usefixtures('resnet4')

CODES = {'angry': 1, 'disgust': 3, 'fear': 4, 'happy': 5, 'sad': 6, 'surprise': 7}
NUM_SUBJECTS, NUM_FOLDS = 7, 3


def write_drawn_ck_plus(folder):
    """Writes a CK+ of drawn faces: for each subject and expression, a sequence from neutral to peak."""
    for identity in range(NUM_SUBJECTS):
        for expression, code in CODES.items():
            subject, sequence = f'S{identity:03}', f'{code:03}'
            names = [f'{subject}_{sequence}_{frame:08}' for frame in range(1, 4)]
            for frame, name in enumerate(names):
                drawn = expression if frame else 'neutral'
                face = face_drawing.draw_face(0, identity, drawn, frame)
                path = folder / 'cohn-kanade-images' / subject / sequence / f'{name}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(face).save(path)
            label = folder / 'Emotion' / subject / sequence / f'{names[-1]}_emotion.txt'
            label.parent.mkdir(parents=True)
            label.write_text(f'   {code:.7e}\n')


def arguments(folder, workdir):
    values = {
        'data.dir': folder / 'CK+',
        'data.prepared_dir': folder / 'prepared',
        'data.variant': '6',
        'data.num_frames': 2,
        'data.folds': NUM_FOLDS,
        'data.validation_share': 0.25,
        'data.image_size': 16,
        'data.channels': 1,
        'data.mean': (0.5,),
        'data.std': (0.25,),
        'data.batch_size': 16,
        'model.backbone': 'resnet4',
        'model.width_factor': 0.0625,
        'model.stem': 'small',
        'model.embedding_size': 16,
        'model.num_slices': 2,
        'train.num_steps': 4,
        'train.checkpoint_every': 2,
        'train.log_every': 1,
        'eval.batch_size': 16,
        'eval.flip': False,
    }
    path = str(Path(CONFIG).with_name('ck_plus.py'))
    overrides = [f'--config.{key}={value}' for key, value in values.items()]
    return ['crossval', f'--config={path}', f'--workdir={workdir}', *overrides]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('crossval')
    write_drawn_ck_plus(folder / 'CK+')
    return folder


@pytest.fixture(scope='module')
def finished(folder):
    assert main(arguments(folder, folder / 'finished')) == 0
    return folder / 'finished'


def results(workdir):
    return json.loads((workdir / 'crossval.json').read_text())


@pytest.mark.slow
def test_folds_are_disjoint_by_subject_and_test_every_sequence_once(folder, finished):
    config = load_config(*split_arguments(arguments(folder, finished)))
    tested = []
    for fold in range(NUM_FOLDS):
        data = with_fold(config, fold).data
        splits = {name: load_protocol_split(data, name) for name in ('train', 'validation', 'test')}
        subjects = [set(split.subjects) for split in splits.values()]
        assert set.union(*subjects) == {f'S{identity:03}' for identity in range(NUM_SUBJECTS)}
        assert sum(map(len, subjects)) == NUM_SUBJECTS
        assert sorted(subjects[2]) == [f'S{identity:03}' for identity in range(fold, 7, 3)]
        tested += [name.rpartition('_')[0] for name in splits['test'].file_names]
        found = json.loads((finished / f'fold_{fold:02d}' / 'evaluation.json').read_text())
        assert found['num_examples'] == len(splits['test'].labels)
    # Each sequence has 2 frames.
    assert sorted(tested) == sorted(2 * sorted(set(tested)))
    assert len(set(tested)) == NUM_SUBJECTS * len(CODES)


def split_arguments(argv):
    (config,) = (x.removeprefix('--config=') for x in argv if x.startswith('--config='))
    return config, [x for x in argv if x.startswith('--config.')]


@pytest.mark.slow
def test_pooled_scores_count_every_image_of_all_folds(finished):
    pooled = results(finished)
    assert pooled['num_folds'] == NUM_FOLDS
    assert pooled['num_examples'] == 2 * NUM_SUBJECTS * len(CODES)
    assert pooled['class_names'] == ['anger', 'disgust', 'fear', 'happy', 'sadness', 'surprise']
    for scores in pooled['classifiers'].values():
        np.testing.assert_array_equal(np.sum(scores['confusion_matrix'], axis=1), [14] * 6)


@pytest.mark.slow
def test_report_links_to_the_report_of_each_fold(finished):
    text = (finished / 'report.html').read_text()
    for fold in range(NUM_FOLDS):
        assert f'href="fold_{fold:02d}/report.html"' in text
        assert (finished / f'fold_{fold:02d}' / 'report.html').is_file()
    assert f'of {NUM_FOLDS} folds' in text
    assert '$' not in text.replace('$scope', '')


@pytest.mark.slow
def test_run_killed_in_the_third_fold_and_resumed_ends_with_the_same_result(folder, finished):
    killed = folder / 'killed'
    folder_02 = killed / 'fold_02' / 'checkpoints'
    script = textwrap.dedent(f"""
        import os, pathlib, signal, time
        from mtdml_jax.__main__ import main
        from mtdml_jax.models import backbones, resnet
        from mtdml_jax.training import checkpoints, loop
        from small_data import RESNET4

        resnet.RESNETS['resnet4'] = RESNET4
        backbones.BACKBONES['resnet4'] = backbones.BACKBONES['resnet18']
        make_batches = loop.train_batches

        def batches(*args, **kwargs):
            for number, batch in enumerate(make_batches(*args, **kwargs)):
                if number == 3:
                    # Checkpoints are written in the background: wait for that of step 2.
                    while not checkpoints.has_checkpoint(pathlib.Path({str(folder_02)!r})):
                        time.sleep(0.05)
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        loop.train_batches = batches
        main({arguments(folder, killed)!r})
    """)
    for name in ('config.json', 'fold_00', 'fold_01'):
        copy = shutil.copytree if name[:4] == 'fold' else shutil.copy
        killed.mkdir(exist_ok=True)
        copy(finished / name, killed / name)
    ended = subprocess.run(
        [sys.executable, '-c', script], cwd=Path(__file__).parents[1] / 'helpers', check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert checkpoints.has_checkpoint(folder_02)
    assert not (killed / 'crossval.json').exists()
    assert main(arguments(folder, killed)) == 0
    assert results(killed) == results(finished)


@pytest.mark.slow
def test_finished_folds_are_not_run_again(folder, finished):
    files = [path for path in finished.glob('fold_*/**/*') if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(arguments(folder, finished)) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_fold_that_was_evaluated_on_another_split_is_tested_again(folder, finished):
    before, path = results(finished), finished / 'fold_01' / 'evaluation.json'
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps(evaluation | {'split': 'train', 'num_examples': 1}))
    assert main(arguments(folder, finished)) == 0
    assert results(finished) == before
    assert json.loads(path.read_text())['num_examples'] == evaluation['num_examples']


@pytest.mark.slow
def test_settings_without_folds_or_of_another_run_are_refused(folder, finished, capsys):
    command = arguments(folder, finished)
    assert main([*command, '--config.data.folds=0']) == 2
    assert 'config.data.folds: expected a number of folds' in capsys.readouterr().err
    assert main([*command, '--config.seed=1']) == 2
    assert 'seed (there 0, now 1)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('data.batch_size=20', 'config.data.batch_size (20) must be divisible'),
        ("data.heldout_classes=('happy',)", 'config.data.heldout_classes: crossval pools'),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_folder_is_made(
    folder, capsys, override, message
):
    workdir = folder / 'refused'
    assert main([*arguments(folder, workdir), f'--config.{override}']) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()


def fold_of(confusion):
    confusion = np.array(confusion)
    accuracy = np.trace(confusion) / confusion.sum()
    scores = {'accuracy': accuracy, 'confusion_matrix': confusion.tolist()}
    return {
        'num_examples': int(confusion.sum()),
        'class_names': ['a', 'b'],
        'classifiers': {'knn': scores},
    }


def test_pooled_accuracy_weighs_images_and_its_mean_weighs_folds_by_hand():
    pooled = pool_folds([fold_of([[3, 1], [0, 4]]), fold_of([[1, 0], [1, 0]])])
    scores = pooled['classifiers']['knn']
    assert pooled['fold_examples'] == [8, 2]
    assert scores['confusion_matrix'] == [[4, 1], [1, 4]]
    assert scores['accuracy'] == 0.8
    assert scores['fold_accuracies'] == [7 / 8, 1 / 2]
    assert scores['accuracy_mean'] == 0.6875
    # Two values x and y have the standard error |x - y| / 2; t with 1 degree of freedom is 12.706.
    # The interval would exceed [0, 1], so it ends there.
    assert 12.7062 * 0.375 / 2 > 0.6875
    assert scores['accuracy_ci95'] == [0.0, 1.0]


def test_interval_of_folds_is_that_of_their_mean_and_at_least_that_of_all_images():
    different = [fold_of([[x, 100 - x], [100 - x, x]]) for x in (80, 90, 70)]
    # The standard error is 0.1 / sqrt(3); t with 2 degrees of freedom is 4.30265.
    half = 4.30265 * 0.1 / 3**0.5
    assert 0.8 + half > 1
    (found,) = (x['accuracy_ci95'] for x in pool_folds(different)['classifiers'].values())
    np.testing.assert_allclose(found, [0.8 - half, 1.0], rtol=1e-5)
    equal = pool_folds([fold_of([[10, 0], [0, 10]])] * 3)['classifiers']['knn']
    # Wilson's interval for n right answers of n starts at 1 / (1 + z^2 / n).
    np.testing.assert_allclose(equal['accuracy_ci95'], [1 / (1 + 1.959964**2 / 60), 1], rtol=1e-5)
