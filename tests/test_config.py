import json
import ntpath
from pathlib import Path

import pytest
from small_data import CONFIG

from mtdml_jax.config import (
    apply_overrides,
    check_config,
    claim_workdir,
    flatten,
    load_config,
    read_config,
)
from mtdml_jax.host.errors import UserError


def test_overrides_keep_the_type_of_their_key():
    config = load_config(
        CONFIG,
        [
            '--config.train.num_steps=7',
            '--config.optim.learning_rate=1',
            '--config.loss.dual=False',
            '--config.loss.thresholds=(0.25, 1)',
        ],
    )
    assert config.train.num_steps == 7
    assert isinstance(config.optim.learning_rate, float)
    assert config.loss.dual is False
    assert config.loss.thresholds == (0.25, 1)


def test_each_config_of_the_project_has_the_keys_of_the_default():
    keys = {key for key, _ in flatten(load_config(CONFIG))}
    configs = sorted(Path(CONFIG).parent.glob('[!_]*.py'))
    assert len(configs) > 10
    for path in configs:
        assert {key for key, _ in flatten(load_config(str(path)))} == keys, path.name


@pytest.mark.parametrize('order', [1, -1])
def test_family_of_weights_sets_what_no_other_argument_sets(order):
    overrides = ['--config.model.pretrained_family=face_evolve', '--config.data.image_size=96']
    config = load_config(CONFIG, overrides[::order])
    assert (config.model.backbone, config.model.stem, config.data.mean) == ('ir50', 'small', (0.5,))
    assert config.data.image_size == 96
    assert config.data.batch_size == load_config(CONFIG).data.batch_size


def test_family_takes_the_place_of_another_one():
    family = '--config.model.pretrained_family=torchvision'
    config = load_config('fer2013_pretrained', [family])
    assert (config.model.backbone, config.model.batch_norm) == ('resnet18', 'batch')
    chosen = load_config(CONFIG, [family, '--config.model.backbone=resnet50'])
    assert (chosen.model.backbone, chosen.data.image_size) == ('resnet50', 224)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        (
            '--config.model.pretrained_family=caffe',
            "model.pretrained_family: expected one of .*dlib, .*, found 'caffe'",
        ),
        (
            '--config.optim.lerning_rate=1',
            "'optim.lerning_rate'; did you mean 'optim.learning_rate'",
        ),
        ('--config.train=5', "unknown config key 'train'"),
        ('--config.train.num_steps=many', 'num_steps'),
        ('--confg.train.num_steps=5', 'confg'),
        ('stray', "unexpected argument 'stray'"),
    ],
)
def test_wrong_override_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(CONFIG, [override])


@pytest.mark.parametrize('name', ['configs/nothing.py', 'elsewhere/quickstart.py', 'default.txt'])
def test_missing_config_file_is_named_with_the_configs_of_the_package(name):
    with pytest.raises(UserError, match=f"no file '{name}', and none of affectnet, .*, quickstart"):
        load_config(name)


def test_colon_after_a_drive_does_not_start_an_argument(monkeypatch):
    monkeypatch.setattr('os.path.splitdrive', ntpath.splitdrive)
    with pytest.raises(UserError, match="no file 'C:/none.py', and none of"):
        load_config('C:/none.py:argument')


@pytest.mark.parametrize('name', ['quickstart', 'quickstart.py', 'configs/quickstart.py'])
def test_config_of_the_package_is_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(name, ['--config.seed=3'])
    assert (config.data.name, config.seed) == ('synthetic_faces', 3)


def test_users_config_can_build_on_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('quickstart.py').write_text(
        'from mtdml_jax.configs import fer2013\n'
        'def get_config(width):\n'
        '    config = fer2013.get_config()\n'
        '    config.model.width_factor = float(width)\n'
        '    return config\n'
    )
    config = load_config('quickstart.py:0.75')
    assert (config.data.name, config.model.width_factor) == ('fer2013', 0.75)


def test_config_is_read_from_its_run_as_it_was_written(tmp_path):
    config = load_config(CONFIG, ['--config.loss.thresholds=(0.5, 1.0)'])
    claim_workdir(tmp_path / 'run', config)
    assert read_config(tmp_path / 'run').to_dict() == config.to_dict()
    again = apply_overrides(read_config(tmp_path / 'run'), ['--config.data.mean=(0.1,)'])
    assert again.data.mean == (0.1,)


def test_run_of_an_older_version_has_the_defaults_of_newer_keys(tmp_path):
    config = load_config(CONFIG, ['--config.data.batch_size=40', '--config.data.columns.x=left'])
    claim_workdir(tmp_path, config)
    path = tmp_path / 'config.json'
    saved = json.loads(path.read_text())
    del saved['data']['micro_batch'], saved['data']['columns']['y'], saved['augment']
    path.write_text(json.dumps(saved))
    assert read_config(tmp_path).to_dict() == config.to_dict()


def test_workdir_of_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    claim_workdir(tmp_path, load_config(CONFIG))
    (tmp_path / 'checkpoints' / '100').mkdir(parents=True)
    other = load_config(CONFIG, ['--config.seed=3', '--config.optim.learning_rate=0.5'])
    with pytest.raises(UserError, match=r'optim.learning_rate \(there 0.001, now 0.5\), seed'):
        claim_workdir(tmp_path, other)


@pytest.mark.parametrize('saved', ['fold_00/checkpoints/100', 'fold_01/evaluation.json'])
def test_workdir_is_free_until_the_run_or_one_of_its_folds_saves_something(saved, tmp_path):
    other = load_config(CONFIG, ['--config.seed=3'])
    claim_workdir(tmp_path, load_config(CONFIG))
    (tmp_path / 'fold_00' / 'checkpoints' / '100.orbax-checkpoint-tmp').mkdir(parents=True)
    claim_workdir(tmp_path, other)
    assert read_config(tmp_path).seed == 3
    (tmp_path / saved).mkdir(parents=True)
    with pytest.raises(UserError, match=r'seed \(there 3, now 0\)'):
        claim_workdir(tmp_path, load_config(CONFIG))


def test_run_may_move_to_a_machine_where_the_data_are_elsewhere(tmp_path):
    claim_workdir(tmp_path, load_config(CONFIG))
    claim_workdir(tmp_path, load_config(CONFIG, ['--config.data.dir=/mnt/faces']))


@pytest.mark.parametrize('is_old', [False, True])
def test_run_may_resume_with_another_mapping_even_if_it_is_older_than_the_key(tmp_path, is_old):
    claim_workdir(tmp_path, load_config(CONFIG))
    path = tmp_path / 'config.json'
    saved = json.loads(path.read_text())
    if is_old:
        del saved['train']['mapping']
    path.write_text(json.dumps(saved))
    (tmp_path / 'checkpoints' / '100').mkdir(parents=True)
    claim_workdir(tmp_path, load_config(CONFIG, ['--config.train.mapping=shard_map']))


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match='no run in'):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        (
            '--config.data.batch_size=63',
            r'batch_size \(63\) must be divisible .* \(8\); try 56 or 64',
        ),
        ('--config.data.batch_size=4', 'try 8'),
        (
            '--config.train.mapping=vmap',
            "train.mapping: expected one of pmap, shard_map, found 'vmap'",
        ),
        ('--config.data.micro_batch=5', r'micro_batch \(5\) must divide .* of a device \(16: '),
        ('--config.loss.memory_size=500 --config.loss.mining=all', 'mining=all takes no memory'),
        ('--config.train.log_every=0', 'config.train.log_every: expected at least 1, found 0'),
        ('--config.loss.mining=soft', "one of hard, semihard, quantile, all, found 'soft'"),
        ('--config.loss.reduction=none', "one of mean, active_mean, found 'none'"),
        ('--config.loss.quantile=1.5', 'config.loss.quantile: expected between 0 and 1, found 1.5'),
        ('--config.loss.softness=-1.0', 'config.loss.softness: expected at least 0, found -1.0'),
        ('--config.data.early_share=-0.1', 'early_share: expected between 0 and 1, found -0.1'),
        ('--config.train.best_metric=f1', 'config.train.best_metric'),
        ('--config.seed=-1', 'config.seed: expected between 0 and 2147483647, found -1'),
        ('--config.data.samples_per_class=1', 'samples_per_class: expected at least 2, found 1'),
        ('--config.data.validation_share=0.6', 'validation_share: expected between 0 and 0.5'),
        ('--config.data.sampling=random', "one of class, instance, sqrt, found 'random'"),
        ('--config.data.channels=2', 'config.data.channels: expected one of 1, 3, found 2'),
        ('--config.data.std=(0.1,0.2,0.3)', r'config.data.std: .* each of 1 channels'),
        ('--config.eval.num_neighbors=0', 'eval.num_neighbors: expected at least 1, found 0'),
        ('--config.eval.checkpoint=last', "one of best, latest, found 'last'"),
        ('--config.loss.softmax_weight=0', 'no softmax head to choose by; set it to knn_accuracy'),
    ],
)
def test_settings_that_cannot_work_are_named(override, message):
    with pytest.raises(UserError, match=message):
        check_config(load_config(CONFIG, override.split()), num_devices=8)
