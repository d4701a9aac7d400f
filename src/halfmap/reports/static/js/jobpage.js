// One job: where it stands, its maps, figures, classes, directions, parameters and files.
import { address, getBuffer, getJson, post } from "./api.js";
import { classChooser } from "./classes.js";
import { bytes, h, setText, toast } from "./dom.js";
import {
  jobFacts, jobFigures, machinePanel, methodsPanel, parameterTable, repeatPanel,
} from "./figures.js";
import { jobs, onChange } from "./live.js";
import { directionPlot } from "./plots.js";
import { linkAll, surfaceViewer } from "./surface.js";

const AXES = ["xy, along z", "xz, along y", "yz, along x"];
const MOST_VIEWERS = 4;
const SHARP = 128;

// Surfaces side by side, and slices of the first of them.
export function mapPanel(sources, { title = "Map" } = {}) {
  const viewers = h("div", { class: "viewers" });
  const slices = h("div", { class: "slices" });
  const chips = h("div", { class: "bar" });
  const sharp = h("input", { type: "checkbox" });
  const panel = h(
    "section",
    { class: "panel", "aria-label": title },
    h("div", { class: "head" }, h("h2", {}, title), h("span", { class: "grow" }), h("label", { class: "small quiet" }, sharp, " full detail")),
    chips,
    h("div", { class: "maps" }, viewers, slices),
  );
  let shown = [];
  let open = [];

  function draw() {
    for (const one of open) one.dispose();
    const size = sharp.checked ? 320 : SHARP;
    open = shown.map((source) =>
      surfaceViewer(source.label, {
        size,
        fetchSurface: (level, wanted) => getBuffer("api/surface", { ...source.query, level, size: wanted }),
      }),
    );
    linkAll(open);
    viewers.replaceChildren(...open.map((one) => one.root));
    for (const one of open) one.load().catch((error) => one.root.append(h("p", { class: "message bad" }, error.message)));
    drawSlices();
  }

  function drawSlices() {
    if (!shown.length) return slices.replaceChildren();
    const source = shown[0];
    return slices.replaceChildren(
      ...AXES.map((name, axis) => {
        const image = h("img", { alt: `Slice ${name} of ${source.label}` });
        const slider = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": `Place of the slice ${name}` });
        const draw = () => {
          image.src = address("api/slice", { ...source.query, axis, at: Number(slider.value) / 100 });
        };
        slider.addEventListener("input", draw);
        draw();
        return h("figure", {}, image, slider, h("figcaption", {}, `${source.label}: slice ${name}`));
      }),
    );
  }

  sharp.addEventListener("change", draw);
  let known = "";
  return {
    panel,
    update(all) {
      const now = JSON.stringify(all.map((one) => one.key));
      panel.hidden = !all.length;
      if (now === known) return;
      known = now;
      const before = new Set(shown.map((one) => one.label));
      shown = all.filter((one) => before.has(one.label));
      if (!shown.length) shown = all.filter((one) => one.first).slice(0, MOST_VIEWERS);
      if (!shown.length) shown = all.slice(0, 1);
      chips.hidden = all.length < 2;
      chips.replaceChildren(
        ...all.map((one) =>
          h(
            "button",
            {
              class: "chip",
              "aria-pressed": String(shown.includes(one)),
              onclick: (event) => {
                if (shown.includes(one)) shown = shown.filter((other) => other !== one);
                else shown = [...shown, one].slice(-MOST_VIEWERS);
                for (const chip of chips.children) chip.setAttribute("aria-pressed", String(shown.some((s) => s.label === chip.textContent)));
                event.preventDefault();
                draw();
              },
            },
            one.label,
          ),
        ),
      );
      draw();
    },
    leave() {
      for (const one of open) one.dispose();
    },
  };
}

export function sourcesOf(data, prefix = "") {
  const all = [];
  const finals = data.maps.filter((one) => !one.iteration && one.iteration !== 0);
  const coarse = data.maps.filter((one) => one.iteration || one.iteration === 0);
  const several = finals.filter((one) => /^class\d+$/.test(one.label));
  for (const one of finals) {
    const first = several.length ? several.includes(one) : one === finals[0];
    const query = { id: data.id, file: one.file, v: data.ended || "" };
    all.push({ label: prefix + one.label, key: `${one.file}${data.ended}`, first, query });
  }
  const k = Math.max(1, Math.min(8, data.command === "refine" ? 1 : data.classes || 1));
  coarse.forEach((one, n) => {
    for (let c = 1; c <= k; c += 1) {
      const last = !finals.length && n === coarse.length - 1;
      const label = `${prefix}${one.label}${k > 1 ? `, class ${c}` : ""}`;
      all.push({ label, key: one.file + c, first: last, query: { id: data.id, file: one.file, class: c } });
    }
  });
  return all;
}

// What can follow on this job, with what it hands on filled in.
function nextSteps(data) {
  const own = (names) => {
    const given = Object.fromEntries(data.parameters.map((p) => [p.name, p.value]));
    return Object.fromEntries(names.filter((n) => given[n] !== null && given[n] !== undefined).map((n) => [n, given[n]]));
  };
  const has = (name) => data.files.some((one) => one.name === name);
  const particles = data.id.endsWith(".star") ? data.id : `${data.id}/particles.star`;
  const there = data.id.endsWith(".star") || has("particles.star");
  if (!there || data.status !== "finished") return [];
  const carried = own(["symmetry", "diameter_angstrom"]);
  const steps = [];
  if (["simulate", "class2d", "select"].includes(data.command)) {
    steps.push(["2D classes", { command: "class2d", particles, classes: 50, ...own(["diameter_angstrom"]) }]);
    steps.push(["Starting map", { command: "abinitio", particles, ...carried }]);
  }
  for (const map of data.maps.filter((one) => !one.iteration && one.iteration !== 0 && !/half|mask|sharpened/.test(one.label))) {
    const reference = `${data.id}/${map.file}`;
    const name = data.maps.length > 1 && map.label !== "map" ? ` from ${map.label}` : "";
    const number = /^class(\d+)$/.exec(map.label);
    const given = { command: "refine", particles, reference, ...carried };
    if (number && data.command === "class3d") given.of_class = Number(number[1]);
    if (data.command !== "simulate") steps.push([`Refine${name}`, given]);
    if (["abinitio", "refine"].includes(data.command)) {
      steps.push([`3D classes${name}`, { command: "class3d", particles, reference, classes: 2, ...carried }]);
    }
  }
  return steps.slice(0, 8);
}

export function jobPage(main, go, query) {
  const id = query.id || "";
  const title = h("h1", {}, id);
  const word = h("span", { class: "status" });
  const message = h("p", { class: "message", hidden: true });
  const bar = h("div", { class: "progress" }, h("i", {}));
  const buttons = h("div", { class: "bar" });
  const facts = jobFacts();
  const figures = jobFigures();
  const maps = mapPanel([], { title: "Maps" });
  const classes = classChooser(id, go);
  const directions = h("div", {});
  const details = h("div", {});
  const pictures = h("section", { class: "panel", hidden: true });
  main.replaceChildren(
    h("section", { class: "panel" }, h("div", { class: "head" }, title, word, h("span", { class: "grow" }), buttons), bar, facts.root, message),
    maps.panel,
    classes.panel,
    figures.root,
    directions,
    pictures,
    details,
  );
  let stamp = null;
  let loading = false;
  let again = false;
  let gone = false;
  let directed = "";
  let detailed = "";

  function act(path, body, done) {
    post(path, body).then(() => toast(done)).catch((error) => toast(error.message));
  }

  function drawButtons(data) {
    const state = `${data.status}${data.files.length}`;
    if (buttons.dataset.state === state) return;
    buttons.dataset.state = state;
    const shown = [];
    if (data.status === "running") {
      shown.push(h("button", { onclick: () => confirm("Stop this job? It can be resumed.") && act("api/stop", { id }, "The job was asked to stop.") }, "Stop"));
    }
    const resumable = data.parameters.length && ["stopped", "killed", "failed"].includes(data.status);
    if (resumable) shown.push(h("button", { class: "main", onclick: () => act("api/resume", { id }, "The job goes on.") }, "Resume"));
    for (const [text, given] of nextSteps(data)) {
      shown.push(h("button", { onclick: () => follow(given) }, text));
    }
    if (data.files.some((one) => one.name === "particles.star") || id.endsWith(".star")) {
      shown.push(h("button", { onclick: () => go("particles", { id }) }, "Particles"));
    }
    shown.push(h("button", { onclick: () => go("compare", { a: id }) }, "Compare"));
    if (data.status === "finished") {
      shown.push(h("a", { class: "button", href: address("report", { id, save: 1 }), title: "One file that opens offline" }, "Report"));
      shown.push(h("a", { class: "button", href: address("report", { id, chain: 1, save: 1 }), title: "This job and all it came from" }, "Report of the chain"));
    }
    buttons.replaceChildren(...shown);
  }

  // a class of a 3D classification is refined from its own particles
  async function follow({ of_class: ofClass, ...given }) {
    try {
      if (ofClass) {
        const out = `${id}_class${ofClass}.star`;
        const told = await post("api/select", { id, classes: [ofClass], out }).catch((error) => {
          if (!error.message.includes("exists")) throw error;
          return { out };
        });
        given = { ...given, particles: told.out };
      }
      go("new", given);
    } catch (error) {
      toast(error.message);
    }
  }

  function drawState(row) {
    setText(title, row.id === "." ? row.name : row.id);
    word.className = `status ${row.status}`;
    const stage = row.status === "running" && row.stage ? `, ${row.stage}` : "";
    setText(word, `${row.command} ${row.status}${stage}`);
    const share = row.total ? Math.min(1, (row.done || 0) / row.total) : 0;
    bar.style.visibility = row.status === "running" ? "" : "hidden";
    bar.firstChild.style.width = `${100 * share}%`;
    message.hidden = !row.message;
    message.classList.toggle("bad", row.status === "failed");
    setText(message, row.message || "");
    facts.update(row);
  }

  function drawDetails(data) {
    const now = `${data.status}${data.files.length}${data.runs}`;
    if (now === detailed) return;
    detailed = now;
    const listed = h(
      "table",
      { class: "numbers" },
      h("tbody", {}, data.files.map((one) =>
        h("tr", {}, h("td", {}, h("a", { href: address("api/file", { id, name: one.name }), download: "" }, one.name)), h("td", { class: "number" }, bytes(one.bytes))))),
    );
    details.replaceChildren(
      h("div", { class: "grid" },
        h("section", { class: "panel" }, h("h2", {}, "Parameters"), parameterTable(data)),
        h("section", { class: "panel" }, h("h2", {}, "The run"), machinePanel(data)),
        h("section", { class: "panel" }, h("h2", {}, "Files"), listed)),
      repeatPanel(data),
      methodsPanel(data) || "",
    );
    const others = data.pictures.filter((name) => !/fsc|convergence|map\.png|class\d+\.png/.test(name));
    pictures.hidden = !others.length;
    pictures.replaceChildren(
      h("h2", {}, "Pictures"),
      h("div", { class: "bar" }, others.map((name) => {
        const inside = data.files.some((one) => one.name === `pictures/${name}`) ? `pictures/${name}` : name;
        const src = address("api/picture", { id, name: inside, v: data.iteration || 0 });
        const image = h("img", { src, alt: name, loading: "lazy" });
        image.style.maxWidth = "min(100%, 560px)";
        image.style.maxHeight = "420px";
        return h("a", { href: src, target: "_blank", rel: "noopener" }, image);
      })),
    );
  }

  async function load() {
    if (loading) {
      again = true;
      return;
    }
    loading = true;
    try {
      const data = await getJson("api/job", { id });
      if (gone) return;
      drawState(data);
      figures.update(data);
      maps.update(sourcesOf(data));
      classes.update(data);
      drawButtons(data);
      drawDetails(data);
      const threeD = data.maps.length && data.command !== "simulate";
      if (threeD && data.files.some((one) => one.name === "particles.star") && directed !== data.ended) {
        directed = data.ended;
        getJson("api/directions", { id })
          .then((found) => found && !gone && directions.replaceChildren(h("div", { class: "grid" }, directionPlot(found))))
          .catch((error) => toast(error.message));
      }
    } catch (error) {
      if (!gone) {
        message.hidden = false;
        message.classList.add("bad");
        setText(message, `${error.message}${jobs().has(id) ? "" : " The job is no longer in the folder."}`);
      }
    } finally {
      loading = false;
      if (again && !gone) {
        again = false;
        load();
      }
    }
  }

  const forget = onChange((changed) => {
    const row = jobs().get(id);
    if (!row) {
      if (changed.has(id)) load();
      return;
    }
    drawState(row);
    // the whole is read again when an iteration has ended or the status has changed
    const now = `${row.iteration}${row.status}${row.resolution_angstrom}${row.ended}${row.stage}`;
    if (stamp !== null && now !== stamp) load();
    stamp = now;
  });
  load();
  return {
    leave() {
      gone = true;
      forget();
      maps.leave();
    },
    key(event) {
      return classes.key(event);
    },
  };
}
