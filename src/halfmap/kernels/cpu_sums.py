"""numba kernels that add to transforms: slices inserted, and a transform summed over its symmetry
mates."""

import numba
import numpy as np

from halfmap.kernels.jit import compiled, inlined


@inlined()
def _locate(rotation, kx, ky, padding):
    """Padded object frequency of view frequency (kx, ky), brought to x >= 0: x, y, z and the sign
    of the imaginary part."""
    x = padding * (rotation[0, 0] * kx + rotation[1, 0] * ky)
    y = padding * (rotation[0, 1] * kx + rotation[1, 1] * ky)
    z = padding * (rotation[0, 2] * kx + rotation[1, 2] * ky)
    sign = np.float32(-1.0) if x < 0 else np.float32(1.0)
    return sign * x, sign * y, sign * z, sign


@compiled()
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


@inlined()
def _mates_of_row(fill, ky, kz, begin):
    """Where whole-number rotations turn the cell of a row at x = 0: from there they go in whole
    steps along the row."""
    for f in range(len(fill)):
        for axis in range(3):
            begin[f, axis] = fill[f, axis, 1] * ky + fill[f, axis, 2] * kz


@inlined()
def _mate(turn, begin, kx):
    """A cell's mate by whole numbers, or its opposite, whichever the half-grid keeps first: x, y,
    z, and the sign of the imaginary part."""
    x = begin[0] + turn[0, 0] * kx
    y = begin[1] + turn[1, 0] * kx
    z = begin[2] + turn[2, 0] * kx
    if x < 0 or (x == 0 and (y < 0 or (y == 0 and z < 0))):
        return -x, -y, -z, np.float32(-1.0)
    return x, y, z, np.float32(1.0)


@inlined()
def _is_first(fill, begin, kx, ky, kz):
    """Whether no mate of a cell comes before it, in the order of z, y, x."""
    if kx == 0 and (ky < 0 or (ky == 0 and kz < 0)):
        return False
    for f in range(len(fill)):
        x, y, z, _ = _mate(fill[f], begin[f], kx)
        if z < kz or (z == kz and (y < ky or (y == ky and x < kx))):
            return False
    return True


@inlined()
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


@inlined()
def _sum_at_mates(volume, fill, begin, kx):
    """The sum over the cells into which whole-number rotations turn one: real and imaginary
    part."""
    cz, cy, parts = (volume.shape[0] - 1) // 2, (volume.shape[1] - 1) // 2, volume.shape[3]
    re, im = np.float32(0), np.float32(0)
    for f in range(len(fill)):
        x, y, z, sign = _mate(fill[f], begin[f], kx)
        re += volume[z + cz, y + cy, x, 0]
        if parts == 2:
            im += sign * volume[z + cz, y + cy, x, 1]
    return re, im


@compiled()
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
        begin = np.empty((len(fill), 3), np.int64)
        for ky in range(-cy, rows - cy):
            _mates_of_row(fill, ky, kz, begin)
            for kx in range(columns):
                if np.float32(kx * kx + ky * ky + kz * kz) > limit:
                    continue
                if not _is_first(fill, begin, kx, ky, kz):
                    continue
                if len(rotations):
                    re, im = _sum_of_mates(grid[k], rotations, shifts, turn, kx, ky, kz)
                else:
                    re, im = _sum_at_mates(grid[k], fill, begin, kx)
                for f in range(len(fill)):
                    x, y, z, sign = _mate(fill[f], begin[f], kx)
                    out[k, z + cz, y + cy, x, 0] = re
                    if parts == 2:
                        out[k, z + cz, y + cy, x, 1] = sign * im
                    if x == 0:
                        out[k, cz - z, cy - y, 0, 0] = re
                        if parts == 2:
                            out[k, cz - z, cy - y, 0, 1] = -sign * im
