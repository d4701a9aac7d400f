// A map as a surface that turns: triangles from the server, or from the report itself.
import { digits, h, onTheme, save, setText, variable } from "./dom.js";
import { lighter } from "./lighter.js";
import { drawnByCpu, extent, geometryOf, unpackSurface } from "./mesh.js";
import { colourBar, fineToCoarse } from "./plots.js";

// Where a CPU draws (no GPU, or none that WebGL may use), a frame costs what its triangles and
// pixels cost: while a map turns it is drawn light and small, and in full as soon as it rests.
const LIGHT_TRIANGLES = 14000; // of all maps that turn together
const LIGHT_PIXELS = 130000; // of one map
const REST_MS = 250; // after the last turn
const SLOW_MS = 55; // between frames of a GPU that is to be spared too

// `fetchSurface(level, size)` gives a buffer; without it the first surface is all there is
export function surfaceViewer(label, { fetchSurface = null, colourName = "--surface", size = 128 } = {}) {
  const canvas = h("canvas", { tabindex: "0", role: "img" });
  canvas.setAttribute("aria-label", `Surface of ${label}; arrow keys turn it, + and - zoom`);
  const name = h("div", { class: "label" }, label);
  const scale = h("div", { class: "scale" });
  const slider = h("input", { type: "range", min: "0", max: "1000", value: "300" });
  slider.setAttribute("aria-label", `Threshold of ${label}`);
  const told = h("output", {});
  const controls = h(
    "div",
    { class: "controls" },
    fetchSurface ? "Threshold" : "",
    fetchSurface ? slider : h("span", { class: "grow" }),
    told,
    h("button", { class: "plain", onclick: () => reset(), title: "Front view (R)" }, "Reset"),
    h("button", { class: "plain", onclick: () => savePicture() }, "PNG"),
  );
  // of a surface that is coloured by local resolution
  const coloured = h("input", { type: "checkbox", checked: true });
  const choice = h("label", { class: "small", hidden: true }, coloured, " by local resolution");
  const [finest, coarsest] = [h("span", {}), h("span", {})];
  const bar = colourBar(fineToCoarse, 110);
  const key = h("div", { class: "colours", hidden: true }, h("span", {}, "local resolution"), h("div", {}, finest, bar, coarsest));
  bar.setAttribute("aria-label", "Colours: local resolution, blue fine, red coarse");
  controls.insertBefore(choice, controls.lastElementChild.previousElementSibling);
  const stage = h("div", { class: "stage" }, canvas, name, scale, key);
  const root = h("figure", { class: "viewer" }, stage, controls);
  root.style.margin = "0";

  let renderer;
  try {
    // a CPU smooths edges at less cost by drawing the resting map larger
    renderer = new THREE.WebGLRenderer({ canvas, antialias: !drawnByCpu(), alpha: true });
  } catch {
    stage.replaceChildren(h("p", { class: "quiet" }, "This browser has no WebGL; see the slices."));
    return { root, load: async () => {}, link() {}, dispose() {} };
  }
  const restingRatio = drawnByCpu() ? 2 : Math.min(devicePixelRatio, 2);
  renderer.setPixelRatio(restingRatio);
  const scene = new THREE.Scene();
  const camera = new THREE.PerspectiveCamera(28, 1, 0.1, 50);
  camera.up.set(0, 1, 0);
  camera.position.set(0, 0, 4.4);
  const lights = new THREE.Group();
  lights.add(new THREE.HemisphereLight(0xffffff, 0x777788, 1.6));
  const sun = new THREE.DirectionalLight(0xffffff, 1.9);
  sun.position.set(2, 3, 5);
  lights.add(sun);
  camera.add(lights);
  scene.add(camera);
  // a CPU draws one side of each triangle in a third of the time of two
  const material = new THREE.MeshLambertMaterial(drawnByCpu() ? {} : { side: THREE.DoubleSide });
  const mesh = new THREE.Mesh(new THREE.BufferGeometry(), material);
  scene.add(mesh);
  const turning = new THREE.TrackballControls(camera, canvas);
  turning.rotateSpeed = 2.6;
  turning.zoomSpeed = 0.8;
  turning.panSpeed = 0.4;
  turning.staticMoving = true;
  turning.minDistance = 0.8;
  turning.maxDistance = 20;

  let home = 4.4; // from where the whole surface is seen
  let placed = false;
  let range = { level: 0, lowest: 0, highest: 1 };
  let drawn = 0;
  let wanted = false;
  let dead = false;
  const followers = new Set();
  let surface = null;
  let full = mesh.geometry;
  let light = null; // made when it is first needed
  let slow = drawnByCpu();
  let turned = false; // a moment ago, and the timer of its rest
  let resting = null;
  let late = 0; // frames in a row that came late

  function choose(width, height) {
    const spare = slow && turned && surface;
    if (spare && !light) {
      const copy = lighter(surface, LIGHT_TRIANGLES / (1 + followers.size));
      light = copy === surface ? full : geometryOf(copy);
    }
    mesh.geometry = spare ? light : full;
    const small = Math.min(restingRatio, Math.sqrt(LIGHT_PIXELS / (width * height)));
    const ratio = spare ? small : restingRatio;
    if (renderer.getPixelRatio() !== ratio) renderer.setPixelRatio(ratio);
    return ratio;
  }

  function stir() {
    turned = true;
    clearTimeout(resting);
    resting = setTimeout(() => {
      turned = false;
      ask();
    }, REST_MS);
  }

  // a GPU that does not keep up is spared as a CPU is
  function watchPace() {
    const start = performance.now();
    requestAnimationFrame(() => {
      late = performance.now() - start > SLOW_MS ? late + 1 : 0;
      if (late > 4) slow = true;
    });
  }

  function paint() {
    if (dead) return;
    const { clientWidth: width, clientHeight: height } = stage;
    if (!width || !height) return;
    const factor = choose(width, height);
    if (canvas.width !== Math.floor(width * factor) || canvas.height !== Math.floor(height * factor)) {
      renderer.setSize(width, height, false);
      camera.aspect = width / height;
      camera.updateProjectionMatrix();
      turning.handleResize();
    }
    renderer.render(scene, camera);
    drawn += 1;
  }

  function ask() {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(() => {
      wanted = false;
      paint();
      if (turned && !slow) watchPace();
    });
  }

  function moved() {
    for (const other of followers) other.follow(camera);
    stir();
    ask();
  }

  turning.addEventListener("change", moved);
  const step = () => requestAnimationFrame(() => {
    turning.update();
  });
  for (const kind of ["pointermove", "pointerdown", "pointerup", "wheel"]) {
    canvas.addEventListener(kind, step, { passive: true });
  }

  function turn(x, y) {
    const eye = camera.position.clone().sub(turning.target);
    const right = new THREE.Vector3(1, 0, 0).applyQuaternion(camera.quaternion);
    const up = new THREE.Vector3(0, 1, 0).applyQuaternion(camera.quaternion);
    const q = new THREE.Quaternion().setFromAxisAngle(up, x);
    q.premultiply(new THREE.Quaternion().setFromAxisAngle(right, y));
    camera.position.copy(eye.applyQuaternion(q).add(turning.target));
    camera.up.applyQuaternion(q);
    camera.lookAt(turning.target);
    moved();
  }

  function reset() {
    turning.target.set(0, 0, 0);
    camera.up.set(0, 1, 0);
    camera.position.set(0, 0, home);
    camera.lookAt(turning.target);
    moved();
  }

  canvas.addEventListener("keydown", (event) => {
    const angle = Math.PI / 24;
    const turns = { ArrowLeft: [-angle, 0], ArrowRight: [angle, 0], ArrowUp: [0, -angle], ArrowDown: [0, angle] };
    if (turns[event.key]) turn(...turns[event.key]);
    else if (event.key === "+" || event.key === "=") (camera.position.multiplyScalar(0.9), moved());
    else if (event.key === "-") (camera.position.multiplyScalar(1.1), moved());
    else if (event.key === "r") reset();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function recolour() {
    const by = Boolean(surface?.shares) && coloured.checked;
    material.color.set(by ? "#ffffff" : variable(colourName) || "#7f9fbc");
    if (material.vertexColors !== by) material.needsUpdate = true;
    material.vertexColors = by;
    key.hidden = !by;
    ask();
  }
  coloured.addEventListener("change", recolour);

  function show(buffer) {
    surface = unpackSurface(buffer);
    for (const one of [full, light]) one?.dispose();
    [full, light] = [geometryOf(surface), null];
    range = surface;
    if (!placed) {
      placed = true;
      home = Math.min(6.5, Math.max(2, 4.6 * extent(surface.positions)));
      camera.position.set(0, 0, home);
    }
    const share = (surface.level - Math.max(0, surface.lowest)) / (surface.highest - Math.max(0, surface.lowest));
    if (document.activeElement !== slider) slider.value = String(Math.round(1000 * share));
    setText(told, `at ${digits(surface.level)}`);
    choice.hidden = !surface.shares;
    if (surface.shares) {
      setText(finest, digits(Number(surface.scale[0].toPrecision(3))));
      setText(coarsest, `${digits(Number(surface.scale[1].toPrecision(3)))} Å`);
    }
    recolour();
    setText(scale, `box ${digits(surface.side)} Å · ${(surface.triangles.length / 3).toLocaleString("en-US")} triangles`);
    ask();
  }

  // one request at a time, the last asked for wins
  let busy = false;
  let next = null;
  async function load(level = null, wantedSize = size) {
    if (busy) {
      next = [level, wantedSize];
      return;
    }
    busy = true;
    try {
      const buffer = await fetchSurface(level, wantedSize);
      if (buffer && !dead) show(buffer);
    } finally {
      busy = false;
      if (next && !dead) {
        const [l, s] = next;
        next = null;
        await load(l, s);
      }
    }
  }

  const levelOf = () => {
    const low = Math.max(0, range.lowest);
    return low + (Number(slider.value) / 1000) * (range.highest - low);
  };
  slider.addEventListener("input", () => load(levelOf(), Math.min(64, size)));
  slider.addEventListener("change", () => load(levelOf(), size));

  function savePicture() {
    turned = false;
    paint();
    if (key.hidden) return canvas.toBlob((blob) => save(`${label}.png`, blob));
    const picture = h("canvas", { width: canvas.width, height: canvas.height + 40 });
    const ctx = picture.getContext("2d");
    ctx.fillStyle = variable("--panel");
    ctx.fillRect(0, 0, picture.width, picture.height);
    ctx.drawImage(canvas, 0, 0);
    ctx.fillStyle = variable("--ink");
    ctx.font = "16px system-ui, sans-serif";
    const words = `local resolution  ${finest.textContent}`;
    const at = 12 + ctx.measureText(words).width + 10;
    ctx.fillText(words, 12, picture.height - 14);
    ctx.drawImage(bar, at, picture.height - 28, 200, 16);
    ctx.fillText(coarsest.textContent, at + 210, picture.height - 14);
    return picture.toBlob((blob) => save(`${label}, local resolution.png`, blob));
  }

  // for measuring: frames a second while it turns, and milliseconds of the picture at rest
  async function frames(milliseconds = 2000) {
    const gl = renderer.getContext();
    const pixel = new Uint8Array(4);
    const drawnWhole = () => {
      paint();
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    };
    turned = false;
    drawnWhole();
    const begun = performance.now();
    drawnWhole();
    const rest = performance.now() - begun;
    turn(0.03, 0);
    drawnWhole();
    const start = performance.now();
    let n = 0;
    while (performance.now() - start < milliseconds) {
      turn(0.03, 0);
      drawnWhole();
      n += 1;
      await new Promise((done) => setTimeout(done, 0));
    }
    const rate = (1000 * n) / (performance.now() - start);
    return { rate, rest, ...detail() };
  }

  // what is drawn now
  function detail() {
    const drawnTriangles = mesh.geometry.index ? mesh.geometry.index.count / 3 : 0;
    return { triangles: drawnTriangles, width: canvas.width, turned, slow };
  }

  const watcher = new ResizeObserver(ask);
  watcher.observe(stage);
  onTheme(recolour);
  recolour();
  const viewer = {
    root,
    show,
    load,
    frames,
    detail,
    paint,
    drawnFrames: () => drawn,
    follow(other) {
      camera.position.copy(other.position);
      camera.up.copy(other.up);
      camera.quaternion.copy(other.quaternion);
      stir();
      ask();
    },
    link(other) {
      followers.add(other);
    },
    dispose() {
      dead = true;
      watcher.disconnect();
      turning.dispose();
      for (const one of [full, light]) one?.dispose();
      clearTimeout(resting);
      renderer.dispose();
      renderer.forceContextLoss();
    },
  };
  root.viewer = viewer; // tests and measurements find it here
  return viewer;
}

export function linkAll(viewers) {
  for (const a of viewers) for (const b of viewers) if (a !== b) a.link(b);
}
