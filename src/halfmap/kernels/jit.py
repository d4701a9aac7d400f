"""How kernels for the CPU are compiled: `compiled` ones run their outer loop in parallel and are
kept in numba's cache, `inlined` ones become part of those that call them.

What is inlined stands in the file of those that call it: numba's cache looks at that file alone to
see whether the code has changed.
"""

from functools import partial
from typing import Any

import numba

from halfmap.kernels.cache import choose_cache

compiled: Any = partial(
    numba.njit,
    parallel=True,
    fastmath=True,
    cache=choose_cache(),
    boundscheck=False,
    error_model="numpy",
)
inlined: Any = partial(numba.njit, fastmath=True, inline="always")
