"""Keeps compiled programs on disk, so that a second start does not compile them again."""

import os
from pathlib import Path


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR if it is set.

    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    import jax

    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        folder = Path(root).expanduser() / 'mtdml_jax' / 'compiled'
        jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        # JAX's default of one second would leave out the programs of a small network.
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
