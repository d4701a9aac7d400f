"""The only hand-written compute: slice, insert, symmetrise, gather, pose scores and equations, each
as a numba kernel for the CPU (`cpu`) and in plain torch for any device (`reference`).

A reference grid has shape (K, Z, Y, X): x = 0..R, y and z centred, on a transform padded `padding`
times; frequency (x, y, z) of the padded transform is at `[cz + z, cy + y, x]` with `cz = (Z - 1) //
2`, `cy = (Y - 1) // 2`. Negative x is read as the conjugate of the opposite frequency. A 2D image
is the grid with Z = 2 whose plane z = 0 holds it: rotations about z never leave that plane.

The functions here take tensors and alone decide which of the two runs: numba for tensors on the
CPU, torch elsewhere. With the environment variable `HALFMAP_KERNELS=torch` the plain torch kernels
run on the CPU too, so that what an accelerator does can be followed where there is none.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.errors import InputError
from halfmap.kernels import reference

SWITCH = "HALFMAP_KERNELS"
COMPILING = "HALFMAP_COMPILING"  # set in the process that fills numba's cache
# samples (slices or poses times frequencies) that the torch kernels work on at a time: they hold
# about 200 bytes each on the way to a slice, twice that for pose equations
SAMPLES_AT_ONCE = 4_000_000
_MOST_NUMBERS = 1 << 32  # of one transform: the numba kernels count them in 32 bits
# squared, of a rotation's rows: 1 to rounding; a grid has a margin of two cells around its radius
_LONGEST_ROW = 1.001


def uses_numba(device: torch.device) -> bool:
    """Whether tensors on a device go to the numba kernels; asked at every call.

    Raises:
        InputError: `HALFMAP_KERNELS` is neither "numba" nor "torch".
    """
    asked = os.environ.get(SWITCH) or "numba"
    if asked not in ("numba", "torch"):
        raise InputError(f"environment variable {SWITCH}: expected numba or torch, got {asked!r}")
    return device.type == "cpu" and asked == "numba"


@lru_cache(maxsize=1)
def _compiled() -> ModuleType:
    """The numba kernels. Code that a process compiles and code that it loads from numba's cache
    differ in the last bits, and results must not depend on who came first: where the cache lacks
    them, a process of its own fills it (`warm`), and all load the same code."""
    from halfmap.kernels import cpu

    if COMPILING not in os.environ and not cpu.in_cache():
        command = [sys.executable, "-c", "from halfmap.kernels import warm; warm.compile_all()"]
        environment = {**os.environ, COMPILING: "1"}
        subprocess.run(command, env=environment, check=False, capture_output=True)
    return cpu


def slices(
    grid: Complex[Tensor, "K Z Y X"],
    rotations: Float[Tensor, "M 3 3"],
    classes: Int[Tensor, " M"],
    kx: Float[Tensor, " J"],
    ky: Float[Tensor, " J"],
    *,
    padding: int,
) -> Complex[Tensor, "M J"]:
    """`out[m, j]`: trilinear value of `grid[classes[m]]` at `padding A_m^T (kx_j, ky_j, 0)`."""
    out = grid.new_empty(len(rotations), len(kx))
    if not uses_numba(grid.device):
        for part in _parts(len(rotations), len(kx)):
            out[part] = reference.slices(grid, rotations[part], classes[part], kx, ky, padding)
        return out
    _check_reads(rotations, classes, grid)
    cpu = _compiled()
    cpu.slices(*_arrays(grid, rotations, classes, kx, ky), padding, _written(out))
    return out


def insert(
    num: Complex[Tensor, "K Z Y X"],
    den: Float[Tensor, "K Z Y X"],
    values: Complex[Tensor, "M J"],
    weights: Float[Tensor, "M J"],
    rotations: Float[Tensor, "GM 3 3"],
    classes: Int[Tensor, " M"],
    kx: Float[Tensor, " J"],
    ky: Float[Tensor, " J"],
    *,
    padding: int,
) -> None:
    """Adjoint of `slices`, in place: values spread into num and weights into den with the same
    eight trilinear weights. Rotations are those of the M slices, and then of their symmetry mates,
    all of one mate before the next."""
    if not uses_numba(num.device):
        for mates in rotations.split(max(1, len(values))):
            for part in _parts(len(values), len(kx)):
                reference.insert(
                    num,
                    den,
                    values[part],
                    weights[part],
                    mates[part],
                    classes[part],
                    kx,
                    ky,
                    padding,
                )
        return
    _check_reads(rotations, classes, num)
    cpu = _compiled()
    arguments = _arrays(values, weights, rotations, classes, kx, ky)
    cpu.insert(_written(num), _written(den), *arguments, padding, _slabs(num.shape[1]))


def symmetrised(
    grid: Complex[Tensor, "K Z Y X"] | Float[Tensor, "K Z Y X"],
    rotations: Float[Tensor, "G 3 3"],
    shifts: Float[Tensor, "G 3"],
    *,
    turn: float,
    reach: float,
    fill: Float[Tensor, "F 3 3"] | None = None,
) -> Complex[Tensor, "K Z Y X"] | Float[Tensor, "K Z Y X"]:
    """`out(k) = sum_g exp(i turn S_g k . t_g) grid(S_g k)` for |k| <= reach (at most one cell less
    than the grid's own), 0 beyond; values between cells are trilinear, and a real grid is without
    phases. The grid is Hermitian. `fill` is a group of rotations that turn the axes into each
    other, under which the result is the same: it saves work; and the more where the operators are
    those."""
    if not uses_numba(grid.device):
        z = torch.arange(grid.shape[1], device=grid.device) - (grid.shape[1] - 1) // 2
        planes = max(1, SAMPLES_AT_ONCE // grid[0, 0].numel())
        parts = [
            reference.symmetrised(grid, rotations, shifts, turn, reach, part)
            for part in z.split(planes)
        ]
        return torch.cat(parts, 1)
    cpu = _compiled()
    out = torch.zeros_like(grid)
    arrays = [
        array if grid.is_complex() else array[..., None]
        for array in (_written(grid), _written(out))
    ]
    still = shifts if grid.is_complex() else torch.zeros_like(shifts)
    planes = grid.shape[1]
    stride = next(n for n in range(planes * 3 // 5 + 1, planes + 2) if math.gcd(n, planes) == 1)
    turns = torch.eye(3)[None] if fill is None else fill
    if turns.shape == rotations.shape and not shifts.any() and bool((turns == rotations).all()):
        rotations, still = rotations[:0], still[:0]
    cpu.symmetrised(
        arrays[0],
        *_arrays(rotations, still),
        np.float32(turn),
        np.float32(reach),
        np.ascontiguousarray(turns.cpu().numpy(), np.int64),
        stride,
        arrays[1],
    )
    return out


def gather(
    data: Complex[Tensor, "B I"],
    power: Float[Tensor, "B I"],
    images: Int[Tensor, " E"],
    shift_px: Float[Tensor, "E 2"],
    entry_weights: Float[Tensor, " E"],
    starts: Int[Tensor, " R1"],
    kx: Float[Tensor, " J"],
    ky: Float[Tensor, " J"],
    *,
    box: int,
) -> tuple[Complex[Tensor, "R J"], Float[Tensor, "R J"]]:
    """Values `sum_e w_e S_t^-1 data[images[e]]` and weights `sum_e w_e power[images[e]]` over the
    entries e of each row r, which are `starts[r]:starts[r + 1]`; of the first J of I samples.
    `S_t^-1` multiplies by `exp(-2 pi i k.t / N)`."""
    n = len(kx)
    if not uses_numba(data.device):
        part = data[:, :n], power[:, :n]
        return reference.gather(*part, images, shift_px, entry_weights, starts, kx, ky, box)
    cpu = _compiled()
    values, weights = (t.new_empty(len(starts) - 1, n) for t in (data, power))
    arguments = _arrays(data, power, images, shift_px, entry_weights, starts, kx, ky)
    cpu.gather(*arguments, box, _written(values), _written(weights))
    return values, weights


def pose_equations(
    grid: Complex[Tensor, "K Z Y X"],
    rotations: Float[Tensor, "M 3 3"],
    shift_px: Float[Tensor, "M 2"],
    classes: Int[Tensor, " M"],
    images: Int[Tensor, " M"],
    data: Complex[Tensor, "B I"],
    power: Float[Tensor, "B I"],
    kx: Float[Tensor, " J"],
    ky: Float[Tensor, " J"],
    weight: Float[Tensor, " J"],
    *,
    n_samples: int,
    box: int,
    padding: int,
    derivatives: bool = True,
) -> Float[Tensor, "M sums"]:
    """The 27 sums of a Gauss-Newton step (`reference.pose_equations`) for poses of the images
    `images`, over the first n_samples frequencies; without `derivatives` the first two, a and b of
    the scores (`reference.pose_scores`), at a third of the cost."""
    kernel, n_sums = ("pose_equations", 27) if derivatives else ("pose_scores", 2)
    out = power.new_empty(len(rotations), n_sums)
    if not uses_numba(grid.device):
        for part in _parts(len(rotations), 2 * n_samples):
            own = images[part]
            out[part] = getattr(reference, kernel)(
                grid,
                rotations[part],
                shift_px[part],
                classes[part],
                data[own, :n_samples],
                power[own, :n_samples],
                kx[:n_samples],
                ky[:n_samples],
                weight[:n_samples],
                box,
                padding,
            )
        return out
    _check_reads(rotations, classes, grid)
    arguments = _arrays(grid, rotations, shift_px, classes, images, data, power, kx, ky, weight)
    getattr(_compiled(), kernel)(*arguments, n_samples, box, padding, _written(out))
    return out


def _check_reads(rotations: Tensor, classes: Tensor, grid: Tensor) -> None:
    """The numba kernels read without looking where: what would lead them out of the grids ends the
    process.

    Raises:
        InputError: a class that is not there, a matrix that is no rotation, or a grid too large.
    """
    if not len(classes):
        return
    n_classes, numbers = len(grid), 2 * grid[0].numel()
    if numbers > _MOST_NUMBERS:
        raise InputError(
            f"references: expected no more than {_MOST_NUMBERS:,} numbers in a transform (a box of "
            f"about 800 to Nyquist), got {numbers:,}"
        )
    first, last = int(classes.min()), int(classes.max())
    if first < 0 or last >= n_classes:
        raise InputError(
            f"classes: expected 0 to {n_classes - 1}, as there are references, got {first} to "
            f"{last}"
        )
    longest = float(rotations[:, :2].square().sum(-1).max())
    if not longest < _LONGEST_ROW:  # nor where it is NaN
        raise InputError(
            f"rotations: expected matrices with rows of length 1, got one of {longest**0.5:.4g}"
        )


def _written(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as the numba kernels see it: complex numbers are float32 with a last
    axis (re, im)."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """What the numba kernels read: in one piece, or they would be compiled once more for it."""
    return [_written(tensor.contiguous()) for tensor in tensors]


def _parts(n: int, samples_each: int) -> Iterator[slice]:
    """Consecutive parts of n slices or poses that fit `SAMPLES_AT_ONCE`."""
    size = max(1, SAMPLES_AT_ONCE // max(1, samples_each))
    return (slice(start, start + size) for start in range(0, n, size))


def _slabs(planes: int) -> int:
    """Number of z slabs of an insertion: a multiple of the threads. Each slab looks at every
    sample, but a thin one stays in cache: four to six were the fastest for boxes of 96."""
    threads = torch.get_num_threads()
    return max(1, min(threads * math.ceil(4 / threads), planes))
