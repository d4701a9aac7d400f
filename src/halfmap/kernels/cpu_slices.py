"""numba kernels that read slices of transforms, and compare them with images.

Samples are worked on in blocks, and a block in several short loops: where the samples lie (no
memory is read), what the transform holds there, what follows from it. The first and the last run at
vector speed, which one loop over all of it would not.
"""

import numba
import numpy as np

from halfmap.kernels.jit import compiled, inlined

_BLOCK = 64  # samples
_ONE, _TWO, _THREE = np.uint32(1), np.uint32(2), np.uint32(3)


@inlined()
def _block(rows):
    """Memory for a block of samples: their cells, signs and places in the cells, and `rows` rows of
    real and imaginary parts."""
    cell, sign = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.float32)
    fraction = np.empty((3, _BLOCK), np.float32)
    re, im = np.empty((rows, _BLOCK), np.float32), np.empty((rows, _BLOCK), np.float32)
    return cell, sign, fraction, re, im


@inlined()
def _strides(grid):
    """Of a grid's numbers as they lie in memory: from one y and one z to the next, and where the
    origin is. Wide numbers would halve the speed of finding cells."""
    row, plane = 2 * grid.shape[3], 2 * grid.shape[3] * grid.shape[2]
    origin = (grid.shape[1] - 1) // 2 * plane + (grid.shape[2] - 1) // 2 * row
    return np.uint32(row), np.uint32(plane), np.uint32(origin)


@inlined()
def _find_cells(rotation, kx, ky, start, n, padding, strides, cell, fraction, sign):
    """Of n samples from `start` on: the cell of the grid that holds each (brought to x >= 0), where
    in its cell it lies, and the sign of the imaginary part."""
    row, plane, origin = strides
    ax, bx = padding * rotation[0, 0], padding * rotation[1, 0]
    ay, by = padding * rotation[0, 1], padding * rotation[1, 1]
    az, bz = padding * rotation[0, 2], padding * rotation[1, 2]
    for s in range(n):
        qx, qy = kx[start + s], ky[start + s]
        x, y, z = ax * qx + bx * qy, ay * qx + by * qy, az * qx + bz * qy
        flip = np.float32(-1.0) if x < 0 else np.float32(1.0)
        x, y, z = flip * x, flip * y, flip * z
        fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
        fraction[0, s], fraction[1, s], fraction[2, s] = x - fx, y - fy, z - fz
        sign[s] = flip
        # y and z may be negative: their products wrap, and so does the sum, back
        below = np.uint32(np.int32(fz)) * plane + np.uint32(np.int32(fy)) * row
        cell[s] = np.uint32(below + _TWO * np.uint32(np.int32(fx)) + origin)


@inlined()
def _read_values(volume, cell, fraction, sign, n, strides, planar, re, im):
    """Trilinear values at samples whose cells are known; bilinear ones in a class image."""
    dy, dz = strides[0], strides[1]
    for s in range(n):
        c, wx, wy = cell[s], fraction[0, s], fraction[1, s]
        cy = c + dy
        # along y on the cell's sides, along z between them, then along x
        a, b = volume[c], volume[c + _ONE]
        d, e = volume[c + _TWO], volume[c + _THREE]
        a, b = a + wy * (volume[cy] - a), b + wy * (volume[cy + _ONE] - b)
        d, e = d + wy * (volume[cy + _TWO] - d), e + wy * (volume[cy + _THREE] - e)
        if not planar:
            wz, cz, czy = fraction[2, s], c + dz, cy + dz
            f, g = volume[cz], volume[cz + _ONE]
            h, i = volume[cz + _TWO], volume[cz + _THREE]
            f, g = f + wy * (volume[czy] - f), g + wy * (volume[czy + _ONE] - g)
            h, i = h + wy * (volume[czy + _TWO] - h), i + wy * (volume[czy + _THREE] - i)
            a, b, d, e = a + wz * (f - a), b + wz * (g - b), d + wz * (h - d), e + wz * (i - e)
        re[s] = a + wx * (d - a)
        im[s] = sign[s] * (b + wx * (e - b))


@inlined()
def _read_gradients(volume, cell, fraction, n, strides, planar, re, im, slope_re, slope_im):
    """Trilinear values and their derivatives along the grid's axes, in cells."""
    dy, dz = strides[0], strides[1]
    for s in range(n):
        c, wx, wy = cell[s], fraction[0, s], fraction[1, s]
        cy = c + dy
        # on edges along x: where they begin, and what they rise by
        a, b = volume[c], volume[c + _ONE]
        along_a, along_b = volume[c + _TWO] - a, volume[c + _THREE] - b
        d, e = volume[cy], volume[cy + _ONE]
        along_d, along_e = volume[cy + _TWO] - d, volume[cy + _THREE] - e
        a, b, d, e = a + wx * along_a, b + wx * along_b, d + wx * along_d, e + wx * along_e
        x_re, x_im = along_a + wy * (along_d - along_a), along_b + wy * (along_e - along_b)
        y_re, y_im = d - a, e - b
        value_re, value_im = a + wy * y_re, b + wy * y_im
        if not planar:
            wz, cz, czy = fraction[2, s], c + dz, cy + dz
            f, g = volume[cz], volume[cz + _ONE]
            along_f, along_g = volume[cz + _TWO] - f, volume[cz + _THREE] - g
            h, i = volume[czy], volume[czy + _ONE]
            along_h, along_i = volume[czy + _TWO] - h, volume[czy + _THREE] - i
            f, g, h, i = f + wx * along_f, g + wx * along_g, h + wx * along_h, i + wx * along_i
            x_re += wz * (along_f + wy * (along_h - along_f) - x_re)
            x_im += wz * (along_g + wy * (along_i - along_g) - x_im)
            z_re, z_im = f + wy * (h - f) - value_re, g + wy * (i - g) - value_im
            y_re, y_im = y_re + wz * (h - f - y_re), y_im + wz * (i - g - y_im)
            value_re, value_im = value_re + wz * z_re, value_im + wz * z_im
            slope_re[2, s], slope_im[2, s] = z_re, z_im
        re[s], im[s] = value_re, value_im
        slope_re[0, s], slope_im[0, s] = x_re, x_im
        slope_re[1, s], slope_im[1, s] = y_re, y_im


@inlined()
def _differentiate(rotation, kx, ky, start, n, padding, turn, sign, slope_re, slope_im, re, im):
    """Row 0 of `re` and `im` is the slice as it was read: its conjugate is taken where that was
    read; rows 1 to 5 become its derivatives by the pose, from those along the grid's axes."""
    for s in range(n):
        qx, qy = kx[start + s], ky[start + s]
        gx, gy, gz = slope_re[0, s], slope_re[1, s], slope_re[2, s]
        hx, hy, hz = slope_im[0, s], slope_im[1, s], slope_im[2, s]
        # along the view's axes, per unpadded Fourier pixel; where the conjugate was read (sign -1),
        # d/dk of the real part flips
        flip = sign[s] * padding
        x_re = flip * (rotation[0, 0] * gx + rotation[0, 1] * gy + rotation[0, 2] * gz)
        y_re = flip * (rotation[1, 0] * gx + rotation[1, 1] * gy + rotation[1, 2] * gz)
        z_re = flip * (rotation[2, 0] * gx + rotation[2, 1] * gy + rotation[2, 2] * gz)
        x_im = padding * (rotation[0, 0] * hx + rotation[0, 1] * hy + rotation[0, 2] * hz)
        y_im = padding * (rotation[1, 0] * hx + rotation[1, 1] * hy + rotation[1, 2] * hz)
        z_im = padding * (rotation[2, 0] * hx + rotation[2, 1] * hy + rotation[2, 2] * hz)
        value_re, value_im = re[0, s], sign[s] * im[0, s]
        im[0, s] = value_im
        re[1, s], im[1, s] = -qy * z_re, -qy * z_im
        re[2, s], im[2, s] = qx * z_re, qx * z_im
        re[3, s], im[3, s] = qy * x_re - qx * y_re, qy * x_im - qx * y_im
        re[4, s], im[4, s] = -turn * qx * value_im, turn * qx * value_re
        re[5, s], im[5, s] = -turn * qy * value_im, turn * qy * value_re


@inlined()
def _reach(kx, ky, n):
    """The largest |kx| or |ky| of the first n samples."""
    reach = 0
    for j in range(n):
        reach = max(reach, abs(int(kx[j])), abs(int(ky[j])))
    return reach


@inlined()
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


@inlined()
def _phase_table(shift, box, reach):
    """The table of a shift's phases."""
    table = np.empty((2, 2 * reach + 1, 2), np.float32)
    _phases(shift, box, reach, table)
    return table


@inlined()
def _centre(data, power, weight, kx, ky, phase, reach, start, n, re, im, p):
    """Of one image, n samples from `start` on: the data centred by the shift whose phases are in
    the table, and the power, both times the half-plane's weights."""
    for s in range(n):
        j = start + s
        x, y = np.uint32(np.int32(kx[j]) + reach), np.uint32(np.int32(ky[j]) + reach)
        cos = phase[0, x, 0] * phase[1, y, 0] - phase[0, x, 1] * phase[1, y, 1]
        sin = phase[0, x, 0] * phase[1, y, 1] + phase[0, x, 1] * phase[1, y, 0]
        re[s] = weight[j] * (data[j, 0] * cos - data[j, 1] * sin)
        im[s] = weight[j] * (data[j, 0] * sin + data[j, 1] * cos)
        p[s] = weight[j] * power[j]


@compiled()
def slices(grid, rotations, classes, kx, ky, padding, out):
    """out[m, j] = trilinear value of grid[classes[m]] at `rotations[m]^T (kx_j, ky_j, 0)`."""
    strides, planar, padding = _strides(grid), grid.shape[1] == 2, np.float32(padding)
    for m in numba.prange(len(out)):
        volume = grid[classes[m]].reshape(-1)
        cell, sign, fraction, re, im = _block(1)
        for start in range(0, len(kx), _BLOCK):
            n = min(_BLOCK, len(kx) - start)
            _find_cells(rotations[m], kx, ky, start, n, padding, strides, cell, fraction, sign)
            _read_values(volume, cell, fraction, sign, n, strides, planar, re[0], im[0])
            for s in range(n):
                out[m, start + s, 0], out[m, start + s, 1] = re[0, s], im[0, s]


@compiled()
def gather(data, power, images, shifts, entry_weights, starts, kx, ky, box, values, weights):
    """values[r] = sum over entries e in starts[r]:starts[r + 1] of `w_e S_t^-1 data[images[e]]`,
    weights[r] the same of `w_e power`."""
    reach = _reach(kx, ky, values.shape[1])
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


@compiled()
def pose_scores(
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
    """For each pose a and b, the first two sums of `pose_equations`; out has 2 columns."""
    strides, planar, padding = _strides(grid), grid.shape[1] == 2, np.float32(padding)
    reach = _reach(kx, ky, n_samples)
    for m in numba.prange(len(rotations)):
        volume, i = grid[classes[m]].reshape(-1), images[m]
        phase = _phase_table(shifts[m], box, reach)
        # rows: the slice, and the centred data; `p`: the weights
        cell, sign, fraction, re, im = _block(2)
        p = np.empty(_BLOCK, np.float32)
        a, b = np.float32(0), np.float32(0)
        for start in range(0, n_samples, _BLOCK):
            n = min(_BLOCK, n_samples - start)
            _find_cells(rotations[m], kx, ky, start, n, padding, strides, cell, fraction, sign)
            _read_values(volume, cell, fraction, sign, n, strides, planar, re[0], im[0])
            _centre(data[i], power[i], weight, kx, ky, phase, reach, start, n, re[1], im[1], p)
            for s in range(n):
                a += re[1, s] * re[0, s] + im[1, s] * im[0, s]
                b += p[s] * (re[0, s] * re[0, s] + im[0, s] * im[0, s])
        out[m, 0], out[m, 1] = a, b


@compiled()
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
    strides, planar, padding = _strides(grid), grid.shape[1] == 2, np.float32(padding)
    reach, turn = _reach(kx, ky, n_samples), np.float32(2 * np.pi / box)
    for m in numba.prange(len(rotations)):
        volume, i = grid[classes[m]].reshape(-1), images[m]
        phase = _phase_table(shifts[m], box, reach)
        # rows: the slice, its five derivatives, the centred data; `p`: the weights
        cell, sign, fraction, re, im = _block(7)
        slope_re, slope_im = np.zeros((3, _BLOCK), np.float32), np.zeros((3, _BLOCK), np.float32)
        p = np.empty(_BLOCK, np.float32)
        sums = np.zeros(27, np.float32)
        for start in range(0, n_samples, _BLOCK):
            n = min(_BLOCK, n_samples - start)
            _find_cells(rotations[m], kx, ky, start, n, padding, strides, cell, fraction, sign)
            _read_gradients(
                volume, cell, fraction, n, strides, planar, re[0], im[0], slope_re, slope_im
            )
            _differentiate(
                rotations[m], kx, ky, start, n, padding, turn, sign, slope_re, slope_im, re, im
            )
            _centre(data[i], power[i], weight, kx, ky, phase, reach, start, n, re[6], im[6], p)
            column = 12
            for a in range(6):
                # a class image turns about z alone: its derivatives 1 and 2 are nothing
                still = planar and (a == 1 or a == 2)
                if not still:
                    total = np.float32(0)
                    for s in range(n):
                        total += re[6, s] * re[a, s] + im[6, s] * im[a, s]
                    sums[0 if a == 0 else 1 + a] += total
                for b in range(a, 6):
                    total = np.float32(0)
                    if not (still or (planar and (b == 1 or b == 2))):
                        for s in range(n):
                            total += p[s] * (re[a, s] * re[b, s] + im[a, s] * im[b, s])
                    if a > 0:
                        sums[column] += total
                        column += 1
                    else:
                        sums[1 if b == 0 else 6 + b] += total
        for k in range(27):
            out[m, k] = sums[k]
