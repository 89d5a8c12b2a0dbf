"""Freed memory kept for the next step, on a CPU."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1
TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Whether the C library was told to keep what a step frees, where it is glibc.

    By default it hands large blocks back to the system when they are freed, and the next step
    takes them anew, page by page. Settings of the user's own (MALLOC_*, GLIBC_TUNABLES) stand.

    Source: measured with torch 2.13 on an AMD EPYC, 2 cores, for an LSTM of 2 x 200: 18,000 page
    faults and a quarter of each step less; the most memory held was 14 % more
    (docs/performance.md).
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in wanted)
