"""The only hand-written compute: slice, insert, pose equations; the same functions in `cpu` (numba)
and `reference` (plain torch).

A reference grid has shape (K, Z, Y, X): x = 0..R, y and z centred, on a transform padded `padding`
times; frequency (x, y, z) of the padded transform is at `[cz + z, cy + y, x]` with `cz = (Z - 1) //
2`, `cy = (Y - 1) // 2`. Negative x is read as the conjugate of the opposite frequency. A 2D image
is the grid with Z = 2 whose plane z = 0 holds it: rotations about z never leave that plane.

Both modules are chosen by the device of the arrays: numba on the CPU, torch elsewhere.
"""
