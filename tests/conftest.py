"""Gives all tests eight CPU devices and cheap compilation, before the first use of JAX."""

import os
from importlib.metadata import version
from pathlib import Path

# Environment variables also reach the processes that tests start.
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(Path(__file__).parents[1] / '.pytest_cache' / 'jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
# Tests compile a lot and compute little, so we make compilation fast.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
    # Without MLIR, fusions compile in half the time. Later versions of XLA do not know this flag.
    + ' --xla_cpu_use_fusion_emitters=false'
    * (tuple(map(int, version('jaxlib').split('.')[:2])) <= (0, 10)),
)
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'

import pytest


@pytest.fixture(scope='module')
def resnet4():
    """Registers the backbone 'resnet4' of small_data.py for the tests of one file."""
    # We import here because these modules import the package, which uses JAX.
    from small_data import RESNET4

    from mtdml_jax.models.backbones import BACKBONES
    from mtdml_jax.models.resnet import RESNETS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, 'resnet4', RESNET4)
        patch.setitem(BACKBONES, 'resnet4', BACKBONES['resnet18'])
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Returns a folder with a small FER2013 file in `data`."""
    from small_data import csv_rows, write_csv

    folder = tmp_path_factory.mktemp('faces')
    write_csv(folder / 'data' / 'fer2013.csv', csv_rows())
    return folder
