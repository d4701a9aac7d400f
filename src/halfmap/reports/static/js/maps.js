// Maps side by side that turn together, with slices; and which maps a job has.
import { address, getBuffer } from "./api.js";
import { h } from "./dom.js";
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
        fetchSurface: (level, wanted) => getBuffer("api/surface", { ...source.query, colour: source.colour, level, size: wanted }),
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
    all.push({ label: prefix + one.label, key: `${one.file}${data.ended}`, first, query, colour: one.colour });
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
