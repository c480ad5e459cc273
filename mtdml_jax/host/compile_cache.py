"""Compiled programs kept on disk, so that a second start does not compile them again."""

import os
from pathlib import Path

import jax


def use_compile_cache() -> None:
    """Keeps what JAX compiles in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names one.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        folder = Path(root).expanduser() / 'mtdml_jax' / 'compiled'
        jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        # By default a second, below which a small network's programs are.
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
