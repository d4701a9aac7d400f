// A lighter copy of a surface, to be drawn while it turns where nothing but the CPU draws: vertices
// in one cell of a grid become one, at their mean, and triangles that lose a corner go.

const MOST_CELLS = 96; // along a side of the grid: finer, a copy would be no lighter

function gathered(surface, side) {
  const { positions, normals, triangles, shares } = surface;
  const n = positions.length / 4;
  const cellOf = new Int32Array(side ** 3).fill(-1);
  const mine = new Uint32Array(n);
  const sums = [];
  const place = (v) => Math.min(side - 1, Math.floor(((v + 32768) * side) / 65536));
  let cells = 0;
  for (let v = 0; v < n; v += 1) {
    const at = 4 * v;
    const key = (place(positions[at + 2]) * side + place(positions[at + 1])) * side + place(positions[at]);
    if (cellOf[key] < 0) {
      cellOf[key] = cells;
      sums.push(0, 0, 0, 0, 0, 0, 0, 0);
      cells += 1;
    }
    const cell = cellOf[key];
    mine[v] = cell;
    for (let axis = 0; axis < 3; axis += 1) {
      sums[8 * cell + axis] += positions[at + axis];
      sums[8 * cell + 3 + axis] += normals[at + axis];
    }
    sums[8 * cell + 6] += 1;
    if (shares) sums[8 * cell + 7] += shares[v];
  }
  const kept = new Uint32Array(triangles.length);
  let used = 0;
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [mine[triangles[t]], mine[triangles[t + 1]], mine[triangles[t + 2]]];
    if (a === b || b === c || a === c) continue;
    kept[used] = a;
    kept[used + 1] = b;
    kept[used + 2] = c;
    used += 3;
  }
  return { sums, cells, triangles: kept.slice(0, used), coloured: Boolean(shares) };
}

function packed({ sums, cells, triangles, coloured }) {
  const positions = new Int16Array(4 * cells);
  const normals = new Int8Array(4 * cells);
  const shares = coloured ? new Uint8Array(cells) : null;
  for (let cell = 0; cell < cells; cell += 1) {
    const [x, y, z, nx, ny, nz, n, share] = sums.slice(8 * cell, 8 * cell + 8);
    positions.set([x / n, y / n, z / n].map(Math.round), 4 * cell);
    const length = Math.hypot(nx, ny, nz) || 1;
    normals.set([nx, ny, nz].map((v) => Math.round((127 * v) / length)), 4 * cell);
    if (coloured) shares[cell] = Math.round(share / n);
  }
  return { positions, normals, triangles, shares };
}

// A surface of at most about `most` triangles: itself, where it is that light.
export function lighter(surface, most) {
  if (surface.triangles.length / 3 <= most) return surface;
  let side = MOST_CELLS;
  for (;;) {
    const found = gathered(surface, side);
    const count = found.triangles.length / 3;
    if (count <= 1.1 * most || side <= 8) return packed(found);
    // triangles go with the square of the side
    side = Math.max(8, Math.floor(Math.min(0.9 * side, side * Math.sqrt(most / count))));
  }
}
