// A report: the figures of one job, or of a chain of them, from what lies in the file itself.
import { h, when, withAngstrom } from "./dom.js";
import {
  jobFacts, jobFigures, machinePanel, messagesPanel, methodsPanel, parameterTable, repeatPanel,
} from "./figures.js";
import { directionPlot } from "./plots.js";
import { linkAll, surfaceViewer } from "./surface.js";

function bufferOf(text) {
  const raw = atob(text);
  const buffer = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k += 1) buffer[k] = raw.charCodeAt(k);
  return buffer.buffer;
}

function reportOf(data) {
  const facts = jobFacts();
  const figures = jobFigures();
  const viewers = data.meshes.map((one) => {
    const viewer = surfaceViewer(one.label);
    return [viewer, bufferOf(one.packed)];
  });
  const root = h(
    "article",
    {},
    h("section", { class: "panel" },
      h("div", { class: "head" }, h("h1", {}, data.name), h("span", { class: `status ${data.status}` }, `${data.command} ${data.status}`), h("span", { class: "grow" }), h("span", { class: "quiet small" }, when(data.ended))),
      facts.root, data.summary ? h("p", { class: "found" }, withAngstrom(data.summary)) : ""),
    viewers.length ? h("section", { class: "panel" }, h("h2", {}, viewers.length > 1 ? "Maps" : "Map"), h("div", { class: "viewers" }, viewers.map(([v]) => v.root))) : "",
    figures.root,
    data.sphere ? h("div", { class: "grid" }, directionPlot(data.sphere)) : "",
    data.shown.length ? h("section", { class: "panel" }, h("h2", {}, "Pictures"), data.shown.map((one) => {
      const image = h("img", { src: one.address, alt: one.name });
      image.style.maxWidth = "100%";
      return image;
    })) : "",
    methodsPanel(data) || "",
    messagesPanel(data) || "",
    repeatPanel(data),
    h("div", { class: "grid" },
      h("section", { class: "panel" }, h("h2", {}, "Parameters"), parameterTable(data)),
      h("section", { class: "panel" }, h("h2", {}, "The run"), machinePanel(data))),
  );
  return {
    root,
    draw() {
      facts.update(data);
      figures.update(data);
      linkAll(viewers.map(([v]) => v));
      for (const [viewer, buffer] of viewers) viewer.show?.(buffer);
    },
  };
}

const told = JSON.parse(document.getElementById("data").textContent);
for (const job of told.jobs) {
  const one = reportOf(job);
  document.getElementById("main").append(one.root);
  one.draw();
}
