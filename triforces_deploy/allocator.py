"""Settings of the C library's memory allocator, made inside the process."""

from __future__ import annotations

import ctypes
import os
import platform

from triforces_deploy.nn.scratch import LEAST_BYTES, VARIABLE

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
USUAL_MMAP_MAX = 65536


def keep_freed_memory() -> None:
    """Stop glibc from giving large blocks back to the system at every step, which costs more than the arithmetic.

    The process then keeps the memory of its largest evaluation, and what lies in pieces between the parts of it; nothing
    happens with another C library. Where large tensors go to files because memory is short (nn/scratch.py), the large ones
    that remain are given back.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if VARIABLE in os.environ:
            libc.mallopt(M_MMAP_THRESHOLD, LEAST_BYTES)
        else:
            libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back_large_blocks() -> None:
    """From here on give blocks of some megabytes back after all: where memory is short, speed comes second."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, USUAL_MMAP_MAX)
        libc.mallopt(M_MMAP_THRESHOLD, LEAST_BYTES)
