// Surfaces as they are sent, made ready to be drawn.
import { fineToCoarse } from "./plots.js";

const MAGIC = 0x48464d31;
const MAGIC_COLOURED = 0x48464d32;

export function unpackSurface(buffer) {
  const head = new DataView(buffer);
  const kind = buffer.byteLength < 28 ? 0 : head.getUint32(0, true);
  if (kind !== MAGIC && kind !== MAGIC_COLOURED) throw new Error("no surface");
  const n = head.getUint32(4, true);
  const m = head.getUint32(8, true);
  const [level, lowest, highest, side] = [12, 16, 20, 24].map((at) => head.getFloat32(at, true));
  const end = 28 + 12 * n + 12 * m;
  const coloured = kind === MAGIC_COLOURED;
  return {
    shares: coloured ? new Uint8Array(buffer, end + 8, n) : null,
    scale: coloured ? [head.getFloat32(end, true), head.getFloat32(end + 4, true)] : null,
    positions: new Int16Array(buffer, 28, 4 * n),
    normals: new Int8Array(buffer, 28 + 8 * n, 4 * n),
    triangles: new Uint32Array(buffer, 28 + 12 * n, 3 * m),
    level,
    lowest,
    highest,
    side,
  };
}

// how far from the centre the surface reaches, 1 at the middle of a side of the box
export function extent(positions) {
  let most = 0;
  for (let k = 0; k < positions.length; k += 4) {
    most = Math.max(most, positions[k] ** 2 + positions[k + 1] ** 2 + positions[k + 2] ** 2);
  }
  return Math.sqrt(most) / 32767 || 1;
}

let byCpu = null;
// Whether WebGL is drawn by the CPU here: the name of what draws says so.
export function drawnByCpu() {
  if (byCpu !== null) return byCpu;
  const gl = document.createElement("canvas").getContext("webgl2");
  const told = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = told ? gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : "";
  byCpu = /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return byCpu;
}

// as three.js computes: light, not the numbers of a screen
const LINEAR = Array.from({ length: 256 }, (_, share) =>
  fineToCoarse(share / 255).map((v) => {
    const c = v / 255;
    return Math.round(255 * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  }),
);

export function geometryOf({ positions, normals, triangles, shares }) {
  const geometry = new THREE.BufferGeometry();
  const of = (array) =>
    new THREE.InterleavedBufferAttribute(new THREE.InterleavedBuffer(array, 4), 3, 0, true);
  geometry.setAttribute("position", of(positions));
  geometry.setAttribute("normal", of(normals));
  if (shares) {
    const colours = new Uint8Array(4 * shares.length);
    shares.forEach((share, v) => colours.set(LINEAR[share], 4 * v));
    geometry.setAttribute("color", of(colours));
  }
  geometry.setIndex(new THREE.BufferAttribute(triangles, 1));
  geometry.boundingSphere = new THREE.Sphere(new THREE.Vector3(), 1.75);
  return geometry;
}
