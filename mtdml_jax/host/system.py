"""Everything that depends on the operating system. On others it does nothing, or reports less."""

import os
import platform
import re
import sys
from pathlib import Path

# XLA allocates and frees the same many megabytes at every step. Huge pages that are never returned to
# the system in between avoid a page fault for every 4 KiB.
TUNABLES = ':'.join(
    f'glibc.malloc.{name}'
    for name in ('hugetlb=1', 'mmap_max=0', f'trim_threshold={2**34}', f'top_pad={2**26}')
)
# This file exists if a driver for NVIDIA GPUs is loaded.
NVIDIA_DRIVER = '/proc/driver/nvidia/version'


def restart_with_huge_pages() -> None:
    """Replaces the running Python by the same command with `TUNABLES` in GLIBC_TUNABLES.

    malloc reads the variable only when a process starts. Does nothing if the variable is set, by this
    function or by the user, or if the C library is not GNU's.
    """
    if 'GLIBC_TUNABLES' in os.environ or platform.libc_ver()[0] != 'glibc':
        return
    os.environ['GLIBC_TUNABLES'] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_nvidia_driver() -> bool:
    """Whether a driver for NVIDIA GPUs is loaded. JAX may still not use the GPU."""
    return os.path.exists(NVIDIA_DRIVER)


def processor() -> str:
    """Returns model and cores of the CPU, or '' if unknown. Results depend on them to the bit."""
    if sys.platform != 'linux':
        return ''
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return ''
    # The name alone may hide the generation: a virtual machine may say just "AMD EPYC".
    keys = ('model name', 'cpu family', 'model')
    found = [x[1] for key in keys if (x := re.search(rf'^{key}\s*: (.+)$', text, re.MULTILINE))]
    if len(found) < len(keys):
        return ''
    name, family, model = found
    return f'{name} (family {family}, model {model}), cores: {len(os.sched_getaffinity(0))}'
