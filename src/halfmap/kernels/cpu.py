"""The numba kernels for the CPU; each is tested equal to its namesake in `reference`.

Complex arrays come as float32 with a last axis (re, im). Parallel loops write disjoint memory in a
fixed order, so results do not depend on timing, nor on the number of threads.
"""

from typing import Any

from halfmap.kernels.cpu_slices import gather, pose_equations, pose_scores, slices
from halfmap.kernels.cpu_sums import insert, symmetrised

KERNELS = (slices, insert, gather, pose_scores, pose_equations, symmetrised)


def in_cache() -> bool:
    """Whether numba's cache holds all kernels for this processor; true where it cannot tell."""
    try:
        return all(_is_cached(kernel) for kernel in KERNELS)
    except (AttributeError, OSError):  # numba's own business, which it may rearrange
        return True


def _is_cached(kernel: Any) -> bool:
    processor = kernel.targetctx.codegen().magic_tuple()
    return any(processor in key for key in kernel._cache._cache_file._load_index())
