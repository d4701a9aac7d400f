"""numba kernels for the CPU; each is tested equal to the function of the same name in `reference`.

Complex arrays come as float32 with a last axis (re, im). Parallel loops write disjoint memory in a fixed order, so results
do not depend on timing, nor on the number of threads.
"""

import numba
import numpy as np

_JIT = {"parallel": True, "fastmath": True, "cache": True, "boundscheck": False, "error_model": "numpy"}


@numba.njit(fastmath=True, inline="always")
def _locate(rotation, kx, ky, padding):
    """Padded object frequency of view frequency (kx, ky), brought to x >= 0: x, y, z and the sign of the imaginary part."""
    x = padding * (rotation[0, 0] * kx + rotation[1, 0] * ky)
    y = padding * (rotation[0, 1] * kx + rotation[1, 1] * ky)
    z = padding * (rotation[0, 2] * kx + rotation[1, 2] * ky)
    sign = np.float32(1.0)
    if x < 0:
        x, y, z, sign = -x, -y, -z, np.float32(-1.0)
    return x, y, z, sign


@numba.njit(**_JIT)
def slices(grid, rotations, classes, kx, ky, padding, out):
    """out[m, j] = trilinear value of grid[classes[m]] at `rotations[m]^T (kx_j, ky_j, 0)`."""
    n_slices, n_samples = out.shape[0], len(kx)
    cz, cy = (grid.shape[1] - 1) // 2, (grid.shape[2] - 1) // 2
    for m in numba.prange(n_slices):
        volume = grid[classes[m]]
        rotation = rotations[m]
        for j in range(n_samples):
            x, y, z, sign = _locate(rotation, kx[j], ky[j], padding)
            fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
            ix, iy, iz = int(fx), int(fy) + cy, int(fz) + cz
            wx, wy, wz = x - fx, y - fy, z - fz
            re = np.float32(0)
            im = np.float32(0)
            for dz in range(2):
                az = wz if dz else np.float32(1) - wz
                for dy in range(2):
                    ay = az * (wy if dy else np.float32(1) - wy)
                    a0 = ay * (np.float32(1) - wx)
                    a1 = ay * wx
                    re += a0 * volume[iz + dz, iy + dy, ix, 0] + a1 * volume[iz + dz, iy + dy, ix + 1, 0]
                    im += a0 * volume[iz + dz, iy + dy, ix, 1] + a1 * volume[iz + dz, iy + dy, ix + 1, 1]
            out[m, j, 0] = re
            out[m, j, 1] = sign * im


@numba.njit(**_JIT)
def insert(num, den, values, weights, rotations, classes, kx, ky, padding, n_slabs):
    """Adjoint of `slices`: spread values into num and weights into den with the same eight trilinear weights.

    Each slab of z planes is one parallel task that looks at every sample and keeps what falls inside: no two tasks write the
    same cell, and each cell receives its terms in the order of the slices.
    """
    n_slices, n_samples = values.shape[0], len(kx)
    planes = num.shape[1]
    cz, cy = (planes - 1) // 2, (num.shape[2] - 1) // 2
    for slab in numba.prange(n_slabs):
        first, last = slab * planes // n_slabs, (slab + 1) * planes // n_slabs
        for m in range(n_slices):
            rotation = rotations[m]
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


@numba.njit(**_JIT)
def pose_equations(grid, rotations, shifts, classes, images, data, power, kx, ky, weight, n_samples, box, padding, out):
    """For each pose, the sums that a Gauss-Newton step needs (see `reference.pose_equations`); out has 27 columns."""
    cz, cy = (grid.shape[1] - 1) // 2, (grid.shape[2] - 1) // 2
    turn = np.float32(2 * np.pi / box)
    one = np.float32(1)
    for m in numba.prange(len(rotations)):
        volume = grid[classes[m]]
        r = rotations[m]
        i = images[m]
        tx, ty = shifts[m, 0], shifts[m, 1]
        sums = np.zeros(27, np.float64)
        dr = np.zeros(5, np.float32)
        di = np.zeros(5, np.float32)
        for j in range(n_samples):
            qx, qy = kx[j], ky[j]
            x, y, z, sign = _locate(r, qx, qy, padding)
            fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
            ix, iy, iz = int(fx), int(fy) + cy, int(fz) + cz
            wx, wy, wz = x - fx, y - fy, z - fz
            c = volume[iz, iy, ix : ix + 2]
            cy1 = volume[iz, iy + 1, ix : ix + 2]
            cz1 = volume[iz + 1, iy, ix : ix + 2]
            czy = volume[iz + 1, iy + 1, ix : ix + 2]
            # value and gradient by successive interpolation along x, y, z
            x00r = c[0, 0] + wx * (c[1, 0] - c[0, 0])
            x00i = c[0, 1] + wx * (c[1, 1] - c[0, 1])
            x01r = cy1[0, 0] + wx * (cy1[1, 0] - cy1[0, 0])
            x01i = cy1[0, 1] + wx * (cy1[1, 1] - cy1[0, 1])
            x10r = cz1[0, 0] + wx * (cz1[1, 0] - cz1[0, 0])
            x10i = cz1[0, 1] + wx * (cz1[1, 1] - cz1[0, 1])
            x11r = czy[0, 0] + wx * (czy[1, 0] - czy[0, 0])
            x11i = czy[0, 1] + wx * (czy[1, 1] - czy[0, 1])
            y0r, y0i = x00r + wy * (x01r - x00r), x00i + wy * (x01i - x00i)
            y1r, y1i = x10r + wy * (x11r - x10r), x10i + wy * (x11i - x10i)
            re, im = y0r + wz * (y1r - y0r), sign * (y0i + wz * (y1i - y0i))
            gzr, gzi = y1r - y0r, y1i - y0i
            gyr, gyi = (one - wz) * (x01r - x00r) + wz * (x11r - x10r), (one - wz) * (x01i - x00i) + wz * (x11i - x10i)
            a00, a01, a10, a11 = (one - wz) * (one - wy), (one - wz) * wy, wz * (one - wy), wz * wy
            gxr = a00 * (c[1, 0] - c[0, 0]) + a01 * (cy1[1, 0] - cy1[0, 0]) + a10 * (cz1[1, 0] - cz1[0, 0]) + a11 * (czy[1, 0] - czy[0, 0])
            gxi = a00 * (c[1, 1] - c[0, 1]) + a01 * (cy1[1, 1] - cy1[0, 1]) + a10 * (cz1[1, 1] - cz1[0, 1]) + a11 * (czy[1, 1] - czy[0, 1])
            # gradient along view axes, per unpadded Fourier pixel; conjugation (sign -1) flips the real part's gradient
            sr, si = sign * padding, padding
            vxr = sr * (r[0, 0] * gxr + r[0, 1] * gyr + r[0, 2] * gzr)
            vxi = si * (r[0, 0] * gxi + r[0, 1] * gyi + r[0, 2] * gzi)
            vyr = sr * (r[1, 0] * gxr + r[1, 1] * gyr + r[1, 2] * gzr)
            vyi = si * (r[1, 0] * gxi + r[1, 1] * gyi + r[1, 2] * gzi)
            vzr = sr * (r[2, 0] * gxr + r[2, 1] * gyr + r[2, 2] * gzr)
            vzi = si * (r[2, 0] * gxi + r[2, 1] * gyi + r[2, 2] * gzi)
            dr[0], di[0] = -qy * vzr, -qy * vzi
            dr[1], di[1] = qx * vzr, qx * vzi
            dr[2], di[2] = qy * vxr - qx * vyr, qy * vxi - qx * vyi
            dr[3], di[3] = -turn * qx * im, turn * qx * re
            dr[4], di[4] = -turn * qy * im, turn * qy * re
            angle = -turn * (qx * tx + qy * ty)
            ca, sa = np.cos(angle), np.sin(angle)
            ur, ui = data[i, j, 0], data[i, j, 1]
            w = weight[j]
            xr, xi = w * (ur * ca - ui * sa), w * (ur * sa + ui * ca)
            p = w * power[i, j]
            sums[0] += xr * re + xi * im
            sums[1] += p * (re * re + im * im)
            n = 12
            for a in range(5):
                sums[2 + a] += xr * dr[a] + xi * di[a]
                sums[7 + a] += p * (re * dr[a] + im * di[a])
                for b in range(a, 5):
                    sums[n] += p * (dr[a] * dr[b] + di[a] * di[b])
                    n += 1
        for n in range(27):
            out[m, n] = sums[n]
