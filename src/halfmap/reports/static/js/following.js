// What can follow on a job, with what it hands on filled in: the first few as buttons.

const PARTICLES = /\.(star|cs)$/;

// Whether the job is a file of particles, or holds one.
export function particlesOf(data) {
  if (PARTICLES.test(data.id)) return data.command === "fsc" ? null : data.id;
  return data.files.some((one) => one.name === "particles.star") ? `${data.id}/particles.star` : null;
}

function mapsOf(data) {
  return data.maps.filter((one) => one.iteration === undefined && !/half|mask|sharpened|filtered|resolution/.test(one.label));
}

// Each: [what is on the button, the values of the form].
export function nextSteps(data) {
  if (data.status !== "finished") return [];
  const given = Object.fromEntries(data.parameters.map((p) => [p.name, p.value]));
  const own = (names) => Object.fromEntries(names.filter((n) => given[n] !== null && given[n] !== undefined).map((n) => [n, given[n]]));
  const particles = particlesOf(data);
  const carried = own(["symmetry", "diameter_angstrom"]);
  const folder = !data.maps.some((one) => one.file === data.id.split("/").pop());
  const steps = [];
  const sets = ["simulate", "class2d", "select", "join", "stack", "subtract", "convert"];
  if (particles && sets.includes(data.command)) {
    steps.push(["2D classes", { command: "class2d", particles, classes: 50, ...own(["diameter_angstrom"]) }]);
    steps.push(["Starting map", { command: "abinitio", particles, ...carried }]);
  }
  if (particles && ["ctfrefine", "expand"].includes(data.command)) {
    const start = data.map_before ? { reference: data.map_before } : {};
    const names = ["symmetry", "diameter_angstrom", "mask"];
    if (data.command === "ctfrefine") steps.push(["Refine again", { command: "refine", particles, ...start, local: true, ...own(names) }]);
    else steps.push(["3D classes", { command: "class3d", particles, ...start, classes: 4 }]);
  }
  for (const map of mapsOf(data)) {
    const file = folder ? `${data.id}/${map.file}` : data.id;
    const name = mapsOf(data).length > 1 && map.label !== "map" ? ` from ${map.label}` : "";
    const number = /^class(\d+)$/.exec(map.label);
    const refine = { command: "refine", particles, reference: file, ...carried };
    if (number && data.command === "class3d") refine.of_class = Number(number[1]);
    if (particles && data.command !== "simulate") steps.push([`Refine${name}`, refine]);
    if (particles && ["abinitio", "refine"].includes(data.command)) {
      steps.push([`3D classes${name}`, { command: "class3d", particles, reference: file, classes: 2, ...carried }]);
    }
    if (data.command !== "mask") {
      steps.push([`Symmetry${name}`, { command: "symmetry", map: file }]);
      steps.push([`Change the map${name}`, { command: "volume", map: file }]);
    }
  }
  if (data.files.some((one) => one.name === "half1.mrc") && folder) {
    steps.push(["Sharpen", { command: "postprocess", source: data.id }]);
    steps.push(["Local resolution", { command: "localres", source: data.id }]);
    steps.push(["Orientations", { command: "orientations", source: data.id }]);
    steps.push(["Mask", { command: "mask", source: data.id }]);
    if (particles) {
      steps.push(["CTF refinement", { command: "ctfrefine", particles, beam_tilt: true, ...carried }]);
      steps.push(["Subtract a part", { command: "subtract", source: data.id }]);
    }
  }
  if (particles && given.symmetry && given.symmetry !== "C1" && data.command === "refine") {
    steps.push(["Expand by symmetry", { command: "expand", particles, symmetry: given.symmetry }]);
  }
  return steps;
}
