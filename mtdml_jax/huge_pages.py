"""Huge pages for what XLA allocates on a CPU; malloc must be told when a process starts."""

import os
import platform
import sys

# XLA takes and frees the same many megabytes at every step. Huge pages, never returned to the system in
# between, spare a page fault for each 4 KiB of them.
TUNABLES = ':'.join(
    f'glibc.malloc.{name}'
    for name in ('hugetlb=1', 'mmap_max=0', f'trim_threshold={2**34}', f'top_pad={2**26}')
)


def restart_with_huge_pages() -> None:
    """Replaces the running Python by the same command with `TUNABLES` in GLIBC_TUNABLES.

    Returns if that variable is set, by this function or by the user, or without the GNU C library.
    """
    if 'GLIBC_TUNABLES' in os.environ or platform.libc_ver()[0] != 'glibc':
        return
    os.environ['GLIBC_TUNABLES'] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
