"""Eight CPU devices for all tests, set before the first use of JAX, and a compilation cache."""

import os
from pathlib import Path

os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'

import jax

CACHE = Path(__file__).parents[1] / '.pytest_cache' / 'jax'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
