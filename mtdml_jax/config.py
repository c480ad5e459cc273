"""Configs of runs: load and override them, keep them in the folder of their run, check them."""

import difflib
import json
import math
import os
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtdml_jax import configs
from mtdml_jax.configs import default
from mtdml_jax.configs._families import FAMILIES, use_family
from mtdml_jax.host.errors import UserError, check_choice
from mtdml_jax.host.files import write_whole
from mtdml_jax.loss.multi_threshold import MININGS

# A run may move to another machine, so these keys may change between two starts of a run.
LOCATION_KEYS = ('data.dir', 'data.prepared_dir')
# All keys that may change between two starts, because results do not depend on them. Unlike a location,
# the mapping is the same in all processes of a start.
FREE_KEYS = (*LOCATION_KEYS, 'train.mapping')
# Key -> smallest and largest value.
BOUNDS = {
    'seed': (0, 2**31 - 1),
    'data.batch_size': (1, math.inf),
    'data.early_image_size': (1, math.inf),
    'data.early_share': (0, 1),
    'data.image_size': (1, math.inf),
    'data.micro_batch': (0, math.inf),
    'data.samples_per_class': (2, math.inf),
    'data.validation_share': (0, 0.5),
    'augment.erasing': (0, 1),
    'augment.flip': (0, 1),
    'loss.label_smoothing': (0, 1),
    'loss.metric_weight': (0, math.inf),
    'loss.quantile': (0, 1),
    'loss.softmax_weight': (0, math.inf),
    'loss.softness': (0, math.inf),
    'loss.memory_size': (0, math.inf),
    'loss.memory_start': (0, math.inf),
    'optim.clip_norm': (0, math.inf),
    'optim.learning_rate': (0, math.inf),
    'optim.warmup': (0, 1),
    'optim.weight_decay': (0, math.inf),
    'train.checkpoint_every': (1, math.inf),
    'train.collapse_steps': (1, math.inf),
    'train.ema_decay': (0, 1),
    'train.keep_checkpoints': (1, math.inf),
    'train.log_every': (1, math.inf),
    'train.num_steps': (1, math.inf),
    'eval.batch_size': (1, math.inf),
    'eval.gallery_size': (1, math.inf),
    'eval.num_neighbors': (1, math.inf),
}
# Key -> all values.
CHOICES = {
    'data.channels': (1, 3),
    'data.sampling': ('class', 'instance', 'sqrt'),
    'model.batch_norm': ('batch', 'device', 'running', 'recalibrated'),
    'model.pretrained_family': ('', *FAMILIES),
    'loss.mining': MININGS,
    'loss.reduction': ('mean', 'active_mean'),
    'train.mapping': ('pmap', 'shard_map'),
    'train.best_metric': ('softmax_accuracy', 'knn_accuracy', 'map_at_r'),
    'eval.checkpoint': ('best', 'latest'),
}


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config file and applies overrides.

    Args:
      path: 'FILE' or 'FILE:argument', where FILE is a Python file with a function `get_config`. If there
        is no such file, the name of a config of the package, 'quickstart' or 'configs/quickstart.py'.
      overrides: arguments such as '--config.train.num_steps=500'.

    Raises:
      UserError: the file does not exist, a key is unknown, or a value has the wrong type.
    """
    path, *argument = _find_config(path)
    config = runpy.run_path(path)['get_config'](*argument)
    return apply_overrides(config.lock(), overrides)


def _find_config(path):
    """Returns (file,) or (file, argument). The colon after the letter of a drive belongs to the file."""
    drive, path = os.path.splitdrive(path)
    name, *argument = path.split(':', 1)
    name = drive + name
    shipped = {file.stem: file for file in Path(configs.__file__).parent.glob('[!_]*.py')}
    if not Path(name).is_file():
        short = name.removeprefix('configs/').removesuffix('.py')
        if short not in shipped:
            raise UserError(f'--config: no file {name!r}, and none of {", ".join(sorted(shipped))}')
        name = str(shipped[short])
    return name, *argument


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies arguments such as '--config.train.num_steps=500'; values keep the type of their key.

    `--config.model.pretrained_family` sets the keys of the family that no other argument sets.

    Raises:
      UserError: a key is unknown (the message suggests the closest key), an argument is not an override,
        or a value is wrong.
    """
    known = [key for key, _ in flatten(config)]
    for override in overrides:
        name, *_ = override.split('=')
        key = name.removeprefix('--config.')
        if key != name and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(f'unknown config key {key!r}; did you mean {near!r}?')
    holder = flags.FlagValues()
    argv = ['', *overrides]
    config_flags.DEFINE_config_dict('config', config, flag_values=holder, sys_argv=argv)
    try:
        rest = holder(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f'command line: {error}') from error
    if rest[1:]:
        raise UserError(f'unexpected argument {rest[1]!r}')
    given = config_flags.get_override_values(holder['config'])
    if family := given.get('model.pretrained_family'):
        check_choice('model.pretrained_family', family, FAMILIES)
        use_family(holder.config, family)
        holder.config.update_from_flattened_dict(given)
    return holder.config


def flatten(config: ConfigDict | dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields the keys of a nested config, joined with dots, and their values."""
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            yield from flatten(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value


def read_config(workdir: Path) -> ConfigDict:
    """Reads the config of the run in `workdir`; keys that are newer than the run have their defaults.

    Raises:
      UserError: there is no run in the folder.
    """
    path = workdir / 'config.json'
    if not path.is_file():
        raise UserError(f'--workdir: no run in {workdir} (there is no {path})')
    # JSON turns tuples into lists. A ConfigDict keeps the types of its values, so they are turned back.
    found = json.loads(path.read_text(encoding='utf-8'), object_hook=_lists_to_tuples)
    return ConfigDict(_merge(default.get_config().to_dict(), found)).lock()


def _merge(section, changes):
    """Returns the nested dictionary `section` with the values of `changes`."""
    both = {
        key: _merge(section[key], x) if isinstance(x, dict) and key in section else x
        for key, x in changes.items()
    }
    return section | both


def _lists_to_tuples(section):
    return {key: tuple(x) if isinstance(x, list) else x for key, x in section.items()}


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes the config into the folder of its run, so that no run with another config uses the folder.

    The config of a run that has not saved anything yet is replaced.

    Raises:
      UserError: the folder belongs to a run with another config; the message names the different keys.
    """
    path = workdir / 'config.json'
    if path.is_file():
        different = _differences(read_config(workdir), config)
        if different and _has_saved(workdir):
            raise UserError(
                f'--workdir: {workdir} holds a run with another config: {", ".join(different)}. '
                f'Choose another workdir, or the same settings to resume.'
            )
        if not different:
            return
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2)
    # A kill leaves no incomplete config, and hosts that share a folder do not disturb each other.
    write_whole(path, text + '\n')


def _differences(found, wanted):
    """Describes each key whose value differs between two configs, without `FREE_KEYS`."""
    found, wanted = dict(flatten(found)), dict(flatten(wanted))
    return [
        f'{key} (there {found.get(key)!r}, now {wanted.get(key)!r})'
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key) and key not in FREE_KEYS
    ]


def _has_saved(workdir):
    """Returns whether the run, or one of its folds, has a checkpoint or an evaluation."""
    folders = [workdir, *workdir.glob('fold_*')]
    names = (x.name for folder in folders for x in folder.glob('checkpoints/*'))
    return any(map(str.isdigit, names)) or any((x / 'evaluation.json').exists() for x in folders)


def check_config(config: ConfigDict, num_devices: int = 1) -> None:
    """Raises UserError for settings that cannot work, before anything expensive starts.

    Args:
      config: the whole config.
      num_devices: number of devices over which a training batch is spread.
    """
    _check_values(config)
    _check_batch(config.data, num_devices)
    _check_memory(config.loss, config.data)
    for key in ('mean', 'std'):
        if len(config.data[key]) not in (1, config.data.channels):
            raise UserError(
                f'config.data.{key}: expected one number, or one for each of {config.data.channels} '
                f'channels (config.data.channels), found {config.data[key]}'
            )
    if config.train.best_metric == 'softmax_accuracy' and config.loss.softmax_weight == 0:
        raise UserError(
            'config.train.best_metric: with config.loss.softmax_weight=0 there is no softmax head '
            'to choose by; set it to knn_accuracy or map_at_r'
        )


def _check_values(config):
    values = dict(flatten(config))
    for key, (low, high) in BOUNDS.items():
        if not low <= values[key] <= high:
            expected = f'at least {low}' if high == math.inf else f'between {low} and {high}'
            raise UserError(f'config.{key}: expected {expected}, found {values[key]}')
    for key, choices in CHOICES.items():
        check_choice(key, values[key], choices)


def _check_batch(data, num_devices):
    if data.batch_size % num_devices:
        down = data.batch_size // num_devices * num_devices
        raise UserError(
            f'config.data.batch_size ({data.batch_size}) must be divisible by the number of devices '
            f'({num_devices}); try {down or num_devices} or {down + num_devices}'
        )
    images = data.batch_size // num_devices
    if data.micro_batch and images % data.micro_batch:
        raise UserError(
            f'config.data.micro_batch ({data.micro_batch}) must divide the number of images of a device '
            f'({images}: config.data.batch_size divided by the number of devices)'
        )


def _check_memory(loss, data):
    if 0 < loss.memory_size < data.batch_size:
        raise UserError(
            f'config.loss.memory_size: expected 0 or at least config.data.batch_size '
            f'({data.batch_size}), found {loss.memory_size}'
        )
    if loss.memory_size and loss.mining == 'all':
        raise UserError(
            'config.loss.memory_size: config.loss.mining=all takes no memory, because faces of earlier '
            'batches cannot be anchors; choose another mining, or 0'
        )
