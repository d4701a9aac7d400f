// What is bundled into three.js beside this file: see docs/web.md for the command.
export {
  BufferAttribute, BufferGeometry, Color, DirectionalLight, DoubleSide, Group, HemisphereLight,
  InterleavedBuffer, InterleavedBufferAttribute, Mesh, MeshLambertMaterial, PerspectiveCamera,
  Quaternion, Scene, Sphere, Vector3, WebGLRenderer,
} from "three";
export { TrackballControls } from "three/examples/jsm/controls/TrackballControls.js";
