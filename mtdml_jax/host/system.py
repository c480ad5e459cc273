"""All that depends on the operating system; on another it does nothing, or tells less."""

import os
import platform
import re
import sys
from pathlib import Path

# XLA takes and frees the same many megabytes at every step. Huge pages, never returned to the system in
# between, spare a page fault for each 4 KiB of them.
TUNABLES = ':'.join(
    f'glibc.malloc.{name}'
    for name in ('hugetlb=1', 'mmap_max=0', f'trim_threshold={2**34}', f'top_pad={2**26}')
)
# Is there where a driver for NVIDIA's GPUs is loaded.
NVIDIA_DRIVER = '/proc/driver/nvidia/version'


def restart_with_huge_pages() -> None:
    """Replaces the running Python by the same command with `TUNABLES` in GLIBC_TUNABLES.

    malloc must be told when a process starts. Returns if that variable is set, by this function or by
    the user, or without the GNU C library.
    """
    if 'GLIBC_TUNABLES' in os.environ or platform.libc_ver()[0] != 'glibc':
        return
    os.environ['GLIBC_TUNABLES'] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_nvidia_driver() -> bool:
    """Whether the system tells of an NVIDIA GPU, which JAX may not use."""
    return os.path.exists(NVIDIA_DRIVER)


def processor() -> str:
    """Model and cores of the CPU, on which bits depend as on jax itself; '' where nothing tells them."""
    if sys.platform != 'linux':
        return ''
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return ''
    # The name alone may hide the generation, as a virtual machine's "AMD EPYC" does.
    keys = ('model name', 'cpu family', 'model')
    found = [x[1] for key in keys if (x := re.search(rf'^{key}\s*: (.+)$', text, re.MULTILINE))]
    if len(found) < len(keys):
        return ''
    name, family, model = found
    return f'{name} (family {family}, model {model}), cores: {len(os.sched_getaffinity(0))}'
