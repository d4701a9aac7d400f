"""numba kernels for the CPU; each is tested equal to the function of the same name in `reference`.

Complex arrays come as float32 with a last axis (re, im). Parallel loops write disjoint memory in a
fixed order, so results do not depend on timing, nor on the number of threads.
"""

from functools import partial
from typing import Any

import numba
import numpy as np

from halfmap.kernels.cache import choose_cache

_jit: Any = partial(
    numba.njit,
    parallel=True,
    fastmath=True,
    cache=choose_cache(),
    boundscheck=False,
    error_model="numpy",
)


@numba.njit(fastmath=True, inline="always")
def _locate(rotation, kx, ky, padding):
    """Padded object frequency of view frequency (kx, ky), brought to x >= 0: x, y, z and the sign
    of the imaginary part."""
    x = padding * (rotation[0, 0] * kx + rotation[1, 0] * ky)
    y = padding * (rotation[0, 1] * kx + rotation[1, 1] * ky)
    z = padding * (rotation[0, 2] * kx + rotation[1, 2] * ky)
    sign = np.float32(-1.0) if x < 0 else np.float32(1.0)
    return sign * x, sign * y, sign * z, sign


@_jit()
def slices(grid, rotations, classes, kx, ky, padding, out):
    """out[m, j] = trilinear value of grid[classes[m]] at `rotations[m]^T (kx_j, ky_j, 0)`."""
    n_slices, n_samples = out.shape[0], len(kx)
    cz, cy = (grid.shape[1] - 1) // 2, (grid.shape[2] - 1) // 2
    row, plane = (
        2 * grid.shape[3],
        2 * grid.shape[3] * grid.shape[2],
    )  # floats from one y, one z to the next
    padding = np.float32(padding)
    for m in numba.prange(n_slices):
        volume = grid[classes[m]].reshape(-1)
        rotation = rotations[m]
        for j in range(n_samples):
            x, y, z, sign = _locate(rotation, kx[j], ky[j], padding)
            fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
            wx, wy, wz = x - fx, y - fy, z - fz
            c = (int(fz) + cz) * plane + (int(fy) + cy) * row + 2 * int(fx)
            cy1, cz1, czy = c + row, c + plane, c + plane + row
            # along x on four edges, then along y on two faces, then along z
            r00, i00 = (
                volume[c] + wx * (volume[c + 2] - volume[c]),
                volume[c + 1] + wx * (volume[c + 3] - volume[c + 1]),
            )
            r01, i01 = (
                volume[cy1] + wx * (volume[cy1 + 2] - volume[cy1]),
                volume[cy1 + 1] + wx * (volume[cy1 + 3] - volume[cy1 + 1]),
            )
            r10, i10 = (
                volume[cz1] + wx * (volume[cz1 + 2] - volume[cz1]),
                volume[cz1 + 1] + wx * (volume[cz1 + 3] - volume[cz1 + 1]),
            )
            r11, i11 = (
                volume[czy] + wx * (volume[czy + 2] - volume[czy]),
                volume[czy + 1] + wx * (volume[czy + 3] - volume[czy + 1]),
            )
            r0, i0 = r00 + wy * (r01 - r00), i00 + wy * (i01 - i00)
            r1, i1 = r10 + wy * (r11 - r10), i10 + wy * (i11 - i10)
            out[m, j, 0] = r0 + wz * (r1 - r0)
            out[m, j, 1] = sign * (i0 + wz * (i1 - i0))


@_jit()
def insert(num, den, values, weights, rotations, classes, kx, ky, padding, n_slabs):
    """Adjoint of `slices`: spread values into num and weights into den with the same eight
    trilinear weights.

    Each slab of z planes is one parallel task that looks at every sample and keeps what falls
    inside: no two tasks write the same cell, and each cell receives its terms in the order of the
    slices. Rotations may be a multiple of the values: symmetry mates, all of the first mate before
    the second.
    """
    n_slices, n_samples = len(rotations), len(kx)
    planes = num.shape[1]
    cz, cy = (planes - 1) // 2, (num.shape[2] - 1) // 2
    padding = np.float32(padding)
    for slab in numba.prange(n_slabs):
        first, last = slab * planes // n_slabs, (slab + 1) * planes // n_slabs
        for mate in range(n_slices):
            rotation = rotations[mate]
            m = mate % len(values)
            k = classes[m]
            for j in range(n_samples):
                x, y, z, sign = _locate(rotation, kx[j], ky[j], padding)
                fz = np.floor(z)
                iz = int(fz) + cz
                if iz + 1 < first or iz >= last:
                    continue
                fx, fy = np.floor(x), np.floor(y)
                ix, iy = int(fx), int(fy) + cy
                wx, wy, wz = x - fx, y - fy, z - fz
                re, im, weight = values[m, j, 0], sign * values[m, j, 1], weights[m, j]
                for dz in range(2):
                    if iz + dz < first or iz + dz >= last:
                        continue
                    az = wz if dz else np.float32(1) - wz
                    if az == 0:  # in 2D always for one of the two
                        continue
                    for dy in range(2):
                        ay = az * (wy if dy else np.float32(1) - wy)
                        a0 = ay * (np.float32(1) - wx)
                        a1 = ay * wx
                        num[k, iz + dz, iy + dy, ix, 0] += a0 * re
                        num[k, iz + dz, iy + dy, ix, 1] += a0 * im
                        den[k, iz + dz, iy + dy, ix] += a0 * weight
                        num[k, iz + dz, iy + dy, ix + 1, 0] += a1 * re
                        num[k, iz + dz, iy + dy, ix + 1, 1] += a1 * im
                        den[k, iz + dz, iy + dy, ix + 1] += a1 * weight


@numba.njit(fastmath=True, inline="always")
def _mate(turn, kx, ky, kz):
    """A cell's mate by whole numbers, or its opposite, whichever the half-grid keeps first: x, y,
    z, and the sign of the imaginary part."""
    x = turn[0, 0] * kx + turn[0, 1] * ky + turn[0, 2] * kz
    y = turn[1, 0] * kx + turn[1, 1] * ky + turn[1, 2] * kz
    z = turn[2, 0] * kx + turn[2, 1] * ky + turn[2, 2] * kz
    if x < 0 or (x == 0 and (y < 0 or (y == 0 and z < 0))):
        return -x, -y, -z, np.float32(-1.0)
    return x, y, z, np.float32(1.0)


@numba.njit(fastmath=True, inline="always")
def _is_first(fill, kx, ky, kz):
    """Whether no mate of a cell comes before it, in the order of z, y, x."""
    if kx == 0 and (ky < 0 or (ky == 0 and kz < 0)):
        return False
    for f in range(len(fill)):
        x, y, z, _ = _mate(fill[f], kx, ky, kz)
        if z < kz or (z == kz and (y < ky or (y == ky and x < kx))):
            return False
    return True


@numba.njit(fastmath=True, inline="always")
def _sum_of_mates(volume, rotations, shifts, turn, kx, ky, kz):
    """`sum_g exp(i turn S_g k . t_g)` times the trilinear value at S_g k: real and imaginary
    part."""
    cz, cy, parts = (volume.shape[0] - 1) // 2, (volume.shape[1] - 1) // 2, volume.shape[3]
    re, im = np.float32(0), np.float32(0)
    for g in range(len(rotations)):
        s = rotations[g]
        x = s[0, 0] * kx + s[0, 1] * ky + s[0, 2] * kz
        y = s[1, 0] * kx + s[1, 1] * ky + s[1, 2] * kz
        z = s[2, 0] * kx + s[2, 1] * ky + s[2, 2] * kz
        angle = turn * (x * shifts[g, 0] + y * shifts[g, 1] + z * shifts[g, 2])
        sign = np.float32(-1.0) if x < 0 else np.float32(1.0)
        x, y, z = sign * x, sign * y, sign * z
        fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
        wx, wy, wz = x - fx, y - fy, z - fz
        ix, iy, iz = int(fx), int(fy) + cy, int(fz) + cz
        r, i = np.float32(0), np.float32(0)
        for dz in range(2):
            az = wz if dz else np.float32(1) - wz
            for dy in range(2):
                ay = az * (wy if dy else np.float32(1) - wy)
                a0, a1 = ay * (np.float32(1) - wx), ay * wx
                low, high = volume[iz + dz, iy + dy, ix], volume[iz + dz, iy + dy, ix + 1]
                r += a0 * low[0] + a1 * high[0]
                if parts == 2:
                    i += a0 * low[1] + a1 * high[1]
        i *= sign
        if angle != 0:
            c, d = np.cos(angle), np.sin(angle)
            r, i = c * r - d * i, c * i + d * r
        re += r
        im += i
    return re, im


@numba.njit(fastmath=True, inline="always")
def _sum_at_mates(volume, fill, kx, ky, kz):
    """The sum over the cells into which whole-number rotations turn one: real and imaginary
    part."""
    cz, cy, parts = (volume.shape[0] - 1) // 2, (volume.shape[1] - 1) // 2, volume.shape[3]
    re, im = np.float32(0), np.float32(0)
    for f in range(len(fill)):
        x, y, z, sign = _mate(fill[f], kx, ky, kz)
        re += volume[z + cz, y + cy, x, 0]
        if parts == 2:
            im += sign * volume[z + cz, y + cy, x, 1]
    return re, im


@_jit()
def symmetrised(grid, rotations, shifts, turn, reach, fill, stride, out):
    """out[k] = sum over operators g of `exp(i turn S_g k . t_g)` times the trilinear value of the
    grid at S_g k, for |k| <= reach; parts of complex numbers are the last axis, of length 2, or 1
    where values are real.

    The sum is the same at all cells into which the whole-number rotations `fill` turn one, and at
    their opposites but for the sign of i: it is made at the first of them and written to all.
    Without operators g, `fill` stands for them. Planes are taken in steps of `stride`, as first
    cells are not spread evenly over them.
    """
    n_classes, planes, rows, columns, parts = grid.shape
    cz, cy = (planes - 1) // 2, (rows - 1) // 2
    limit = np.float32(reach * reach)
    for task in numba.prange(n_classes * planes):
        k, kz = task // planes, (task * stride) % planes - cz
        for ky in range(-cy, rows - cy):
            for kx in range(columns):
                if np.float32(kx * kx + ky * ky + kz * kz) > limit:
                    continue
                if not _is_first(fill, kx, ky, kz):
                    continue
                if len(rotations):
                    re, im = _sum_of_mates(grid[k], rotations, shifts, turn, kx, ky, kz)
                else:
                    re, im = _sum_at_mates(grid[k], fill, kx, ky, kz)
                for f in range(len(fill)):
                    x, y, z, sign = _mate(fill[f], kx, ky, kz)
                    out[k, z + cz, y + cy, x, 0] = re
                    if parts == 2:
                        out[k, z + cz, y + cy, x, 1] = sign * im
                    if x == 0:
                        out[k, cz - z, cy - y, 0, 0] = re
                        if parts == 2:
                            out[k, cz - z, cy - y, 0, 1] = -sign * im


@numba.njit(fastmath=True, inline="always")
def _phases(shift, box, reach, table):
    """table[axis, reach + k] = exp(-2 pi i k shift[axis] / N), (re, im): the shift's phase
    factorises, and its powers are products."""
    for axis in range(2):
        angle = -2 * np.pi / box * shift[axis]
        step_re, step_im = np.cos(angle), np.sin(angle)
        re, im = 1.0, 0.0
        for k in range(reach + 1):
            table[axis, reach + k, 0], table[axis, reach + k, 1] = re, im
            table[axis, reach - k, 0], table[axis, reach - k, 1] = re, -im
            re, im = re * step_re - im * step_im, re * step_im + im * step_re


@_jit()
def gather(data, power, images, shifts, entry_weights, starts, kx, ky, box, values, weights):
    """values[r] = sum over entries e in starts[r]:starts[r + 1] of `w_e S_t^-1 data[images[e]]`,
    weights[r] the same of `w_e power`."""
    reach = box // 2
    for r in numba.prange(len(values)):
        phase = np.empty((2, 2 * reach + 1, 2), np.float32)
        values[r] = 0
        weights[r] = 0
        for e in range(starts[r], starts[r + 1]):
            i, weight = images[e], entry_weights[e]
            _phases(shifts[e], box, reach, phase)
            for j in range(values.shape[1]):
                x, y = int(kx[j]) + reach, int(ky[j]) + reach
                re = weight * (phase[0, x, 0] * phase[1, y, 0] - phase[0, x, 1] * phase[1, y, 1])
                im = weight * (phase[0, x, 0] * phase[1, y, 1] + phase[0, x, 1] * phase[1, y, 0])
                values[r, j, 0] += re * data[i, j, 0] - im * data[i, j, 1]
                values[r, j, 1] += re * data[i, j, 1] + im * data[i, j, 0]
                weights[r, j] += weight * power[i, j]


# samples whose values and derivatives are laid out side by side, so that the 27 sums run at vector
# speed
_BLOCK = 64


@_jit()
def pose_equations(
    grid,
    rotations,
    shifts,
    classes,
    images,
    data,
    power,
    kx,
    ky,
    weight,
    n_samples,
    box,
    padding,
    out,
):
    """For each pose, the sums that a Gauss-Newton step needs (see `reference.pose_equations`); out
    has 27 columns."""
    cz, cy = (grid.shape[1] - 1) // 2, (grid.shape[2] - 1) // 2
    row, plane = 2 * grid.shape[3], 2 * grid.shape[3] * grid.shape[2]
    planar = grid.shape[1] == 2
    reach = box // 2
    turn = np.float32(2 * np.pi / box)
    padding = np.float32(padding)
    for m in numba.prange(len(rotations)):
        volume = grid[classes[m]].reshape(-1)
        r = rotations[m]
        i = images[m]
        phase = np.empty((2, 2 * reach + 1, 2), np.float32)
        _phases(shifts[m], box, reach, phase)
        sums = np.zeros(27, np.float32)
        # columns of `re`, `im`: the slice, its five derivatives, the centred data; `p`: the weights
        re, im = np.zeros((7, _BLOCK), np.float32), np.zeros((7, _BLOCK), np.float32)
        p = np.empty(_BLOCK, np.float32)
        for start in range(0, n_samples, _BLOCK):
            n = min(_BLOCK, n_samples - start)
            for s in range(n):
                j = start + s
                qx, qy = kx[j], ky[j]
                x, y, z, sign = _locate(r, qx, qy, padding)
                sr = sign * padding
                fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
                wx, wy, wz = x - fx, y - fy, z - fz
                c = (int(fz) + cz) * plane + (int(fy) + cy) * row + 2 * int(fx)
                cy1, cz1, czy = c + row, c + plane, c + plane + row
                ax, bx = phase[0, int(qx) + reach, 0], phase[0, int(qx) + reach, 1]
                ay, by = phase[1, int(qy) + reach, 0], phase[1, int(qy) + reach, 1]
                ca, sa = ax * ay - bx * by, ax * by + bx * ay
                w = weight[j]
                re[6, s], im[6, s] = (
                    w * (data[i, j, 0] * ca - data[i, j, 1] * sa),
                    w * (data[i, j, 0] * sa + data[i, j, 1] * ca),
                )
                p[s] = w * power[i, j]
                if (
                    planar
                ):  # a class image: nothing changes along z, and the view turns about z alone
                    dr0, di0 = volume[c + 2] - volume[c], volume[c + 3] - volume[c + 1]
                    dr1, di1 = volume[cy1 + 2] - volume[cy1], volume[cy1 + 3] - volume[cy1 + 1]
                    r0, i0 = volume[c] + wx * dr0, volume[c + 1] + wx * di0
                    r1, i1 = volume[cy1] + wx * dr1, volume[cy1 + 1] + wx * di1
                    gxr, gxi, gyr, gyi = (
                        dr0 + wy * (dr1 - dr0),
                        di0 + wy * (di1 - di0),
                        r1 - r0,
                        i1 - i0,
                    )
                    value_re, value_im = r0 + wy * gyr, sign * (i0 + wy * gyi)
                    vxr, vxi = (
                        sr * (r[0, 0] * gxr + r[0, 1] * gyr),
                        padding * (r[0, 0] * gxi + r[0, 1] * gyi),
                    )
                    vyr, vyi = (
                        sr * (r[1, 0] * gxr + r[1, 1] * gyr),
                        padding * (r[1, 0] * gxi + r[1, 1] * gyi),
                    )
                    re[0, s], im[0, s] = value_re, value_im
                    re[3, s], im[3, s] = qy * vxr - qx * vyr, qy * vxi - qx * vyi
                    re[4, s], im[4, s] = -turn * qx * value_im, turn * qx * value_re
                    re[5, s], im[5, s] = -turn * qy * value_im, turn * qy * value_re
                    continue
                dr00, di00 = volume[c + 2] - volume[c], volume[c + 3] - volume[c + 1]
                dr01, di01 = volume[cy1 + 2] - volume[cy1], volume[cy1 + 3] - volume[cy1 + 1]
                dr10, di10 = volume[cz1 + 2] - volume[cz1], volume[cz1 + 3] - volume[cz1 + 1]
                dr11, di11 = volume[czy + 2] - volume[czy], volume[czy + 3] - volume[czy + 1]
                r00, i00 = volume[c] + wx * dr00, volume[c + 1] + wx * di00
                r01, i01 = volume[cy1] + wx * dr01, volume[cy1 + 1] + wx * di01
                r10, i10 = volume[cz1] + wx * dr10, volume[cz1 + 1] + wx * di10
                r11, i11 = volume[czy] + wx * dr11, volume[czy + 1] + wx * di11
                r0, i0, r1, i1 = (
                    r00 + wy * (r01 - r00),
                    i00 + wy * (i01 - i00),
                    r10 + wy * (r11 - r10),
                    i10 + wy * (i11 - i10),
                )
                value_re, value_im = r0 + wz * (r1 - r0), sign * (i0 + wz * (i1 - i0))
                # gradient along the object's axes
                gzr, gzi = r1 - r0, i1 - i0
                gyr, gyi = (
                    (r01 - r00) + wz * ((r11 - r10) - (r01 - r00)),
                    (i01 - i00) + wz * ((i11 - i10) - (i01 - i00)),
                )
                er0, ei0, er1, ei1 = (
                    dr00 + wy * (dr01 - dr00),
                    di00 + wy * (di01 - di00),
                    dr10 + wy * (dr11 - dr10),
                    di10 + wy * (di11 - di10),
                )
                gxr, gxi = er0 + wz * (er1 - er0), ei0 + wz * (ei1 - ei0)
                # along the view's axes, per unpadded Fourier pixel; where the conjugate was read
                # (sign -1), d/dk of the real part flips
                vxr, vxi = (
                    sr * (r[0, 0] * gxr + r[0, 1] * gyr + r[0, 2] * gzr),
                    padding * (r[0, 0] * gxi + r[0, 1] * gyi + r[0, 2] * gzi),
                )
                vyr, vyi = (
                    sr * (r[1, 0] * gxr + r[1, 1] * gyr + r[1, 2] * gzr),
                    padding * (r[1, 0] * gxi + r[1, 1] * gyi + r[1, 2] * gzi),
                )
                vzr, vzi = (
                    sr * (r[2, 0] * gxr + r[2, 1] * gyr + r[2, 2] * gzr),
                    padding * (r[2, 0] * gxi + r[2, 1] * gyi + r[2, 2] * gzi),
                )
                re[0, s], im[0, s] = value_re, value_im
                re[1, s], im[1, s] = -qy * vzr, -qy * vzi
                re[2, s], im[2, s] = qx * vzr, qx * vzi
                re[3, s], im[3, s] = qy * vxr - qx * vyr, qy * vxi - qx * vyi
                re[4, s], im[4, s] = -turn * qx * value_im, turn * qx * value_re
                re[5, s], im[5, s] = -turn * qy * value_im, turn * qy * value_re
            for a in range(6):
                if planar and (a == 1 or a == 2):
                    continue
                total = np.float32(0)
                for s in range(n):
                    total += re[6, s] * re[a, s] + im[6, s] * im[a, s]
                sums[0 if a == 0 else 1 + a] += total
            column = 12
            for a in range(6):
                for b in range(a, 6):
                    if planar and (a == 1 or a == 2 or b == 1 or b == 2):
                        column += a > 0
                        continue
                    total = np.float32(0)
                    for s in range(n):
                        total += p[s] * (re[a, s] * re[b, s] + im[a, s] * im[b, s])
                    if a > 0:
                        sums[column] += total
                        column += 1
                    else:
                        sums[1 if b == 0 else 6 + b] += total
        for n in range(27):
            out[m, n] = sums[n]


KERNELS = (slices, insert, gather, pose_equations, symmetrised)


def in_cache() -> bool:
    """Whether numba's cache holds all kernels for this processor; true where it cannot tell."""
    try:
        return all(_is_cached(kernel) for kernel in KERNELS)
    except (AttributeError, OSError):  # numba's own business, which it may rearrange
        return True


def _is_cached(kernel: Any) -> bool:
    processor = kernel.targetctx.codegen().magic_tuple()
    return any(processor in key for key in kernel._cache._cache_file._load_index())
