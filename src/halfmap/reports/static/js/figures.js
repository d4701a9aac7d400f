// The figures of a job, from its numbers: the same on its page and in its report.
import {
  angstrom, bytes, count, digits, h, inAngstrom, optionName, seconds, setText, withAngstrom, words,
} from "./dom.js";
import { colour, curvePlot, figurePlot, fscAxes } from "./plots.js";

const NUMBERS = {
  median_angstrom: ["median local resolution", angstrom],
  best_angstrom: ["best 5 %", angstrom],
  worst_angstrom: ["worst 5 %", angstrom],
  b_factor_angstrom2: ["B-factor", (v) => `${v.toFixed(0)} Å²`],
  cfar: ["cFAR (1: alike all around)", (v) => v.toFixed(2)],
  scf_star: ["SCF* (1: even views)", (v) => v.toFixed(2)],
};
const ITERATION = { label: "iteration", whole: true };

function byIteration(title, unit, names, options = {}) {
  const plot = curvePlot({ title, x: ITERATION, y: { label: unit, range: options.range }, lines: options.lines });
  return {
    panel: plot.panel,
    update(series) {
      const shown = Object.entries(names).filter(([name]) => series[name]);
      plot.panel.hidden = !shown.length || (series.iteration || []).length < 1;
      if (plot.panel.hidden) return;
      plot.update(
        series.iteration,
        shown.map(([name, label]) => ({ label, values: series[name] })),
      );
    },
  };
}

// Each returns { panel, update(data) } and hides itself where there is nothing to show.
export function jobFigures() {
  const finals = curvePlot({ ...fscAxes, title: "Fourier shell correlation of the half maps" });
  const passing = curvePlot({ ...fscAxes, title: "FSC by iteration" });
  const resolution = byIteration("Resolution by iteration", "resolution (Å)", {
    resolution_angstrom: "reached",
    scored_to_angstrom: "images scored to",
  });
  const classes = curvePlot({ title: "Class sizes by iteration", x: ITERATION, y: { label: "particles" } });
  const likelihood = byIteration("Log likelihood by iteration", "mean, per particle", {
    mean_log_likelihood: "log likelihood",
  });
  const certainty = byIteration("How sure of the poses", "share of the posterior", {
    mean_largest_weight: "largest weight (Pmax)",
  }, { range: [0, 1.03] });
  const turns = byIteration("Change of poses by iteration", "median change", {
    angular_change_deg: "rotation (deg)",
    shift_change_angstrom: "shift (Å)",
    accuracy_deg: "accuracy of rotation (deg)",
  });
  const stages = curvePlot({ title: "Time by stage", x: ITERATION, y: { label: "seconds" } });

  function updateFinals(data) {
    finals.panel.hidden = !data.fsc.length;
    if (!data.fsc.length) return;
    const several = data.fsc.length > 1;
    const all = data.fsc.flatMap((one) =>
      Object.entries(one.curves)
        .filter(([label]) => !several || label === "corrected for the mask" || label === "unmasked")
        .filter(([label], k, list) => !several || label === list[0][0])
        .map(([label, values]) => ({
          label: several ? `${one.name} (${angstrom(one.resolution_angstrom)})` : label,
          values,
        })),
    );
    const optimistic = data.fsc.some((one) => one.optimistic);
    const reached = several ? "" : `, ${angstrom(data.fsc[0].resolution_angstrom)} at 0.143`;
    finals.retitle(`FSC of the half maps${reached}${optimistic ? ", optimistic: halves share references" : ""}`);
    finals.update(data.fsc[0].frequency, all.slice(0, 8));
  }

  function updatePassing(data) {
    const curves = data.curves;
    passing.panel.hidden = !curves;
    if (!curves) return;
    const k = curves.correlation.length;
    const best = data.series.resolutions_angstrom;
    const series = curves.correlation.map((byClass, n) => {
      const last = n === k - 1;
      const share = k > 1 ? n / (k - 1) : 1;
      const which = best ? bestClass(best, n) : 0;
      return {
        label: `iteration ${curves.iteration[n]}`,
        values: byClass[Math.min(which, byClass.length - 1)],
        colour: last ? colour(3) : colour(0),
        faint: last ? null : 0.35 + 0.5 * share,
        width: last ? 2.5 : 1.2,
      };
    });
    passing.retitle(`FSC by iteration, 1 to ${curves.iteration[k - 1]}${best ? ", best class" : ""}`);
    passing.update(curves.frequency, series);
  }

  function bestClass(resolutions, n) {
    let best = 0;
    resolutions.forEach((row, c) => {
      if (row[n] !== null && (resolutions[best][n] === null || row[n] < resolutions[best][n])) best = c;
    });
    return best;
  }

  // those that the job left as numbers, by their titles
  const own = new Map();
  function updateOwn(figures) {
    for (const one of figures) {
      const [head] = one.title.split(",");
      if (!own.has(head)) {
        own.set(head, figurePlot(one));
        finals.panel.after(own.get(head).panel);
      }
      const plot = own.get(head);
      plot.retitle(one.title);
      const names = Object.keys(one.curves);
      plot.update(one.x, names.map((label) => ({ label, values: one.curves[label] })));
    }
  }

  function update(data) {
    updateFinals(data);
    updateOwn(data.figures || []);
    updatePassing(data);
    for (const one of [resolution, likelihood, certainty, turns]) one.update(data.series);
    const sizes = data.series.class_sizes;
    classes.panel.hidden = !sizes || data.command === "class2d";
    if (!classes.panel.hidden) {
      classes.update(data.series.iteration, sizes.map((values, k) => ({ label: `class ${k + 1}`, values })));
    }
    const names = Object.keys(data.stages).slice(0, 6);
    stages.panel.hidden = !names.length;
    if (names.length) {
      const total = (name) => data.stages[name].reduce((a, b) => a + b, 0);
      stages.update(
        data.series.iteration,
        names.map((name) => ({ label: `${name} (${seconds(total(name))})`, values: data.stages[name] })),
      );
    }
  }

  const panels = [finals, resolution, passing, likelihood, certainty, turns, classes, stages];
  const root = h("div", { class: "grid" }, panels.map((one) => one.panel));
  for (const one of panels) one.panel.hidden = true;
  return { root, update };
}

// The numbers at the head of a job.
export function jobFacts() {
  const root = h("div", { class: "facts" });
  const shown = new Map();
  function fact(label, text) {
    if (!shown.has(label)) {
      const value = h("b", {});
      shown.set(label, [h("div", { class: "fact" }, value, h("span", {}, label)), value]);
      root.append(shown.get(label)[0]);
    }
    const [element, value] = shown.get(label);
    setText(value, text || "–");
    element.hidden = text === null;
  }
  return {
    root,
    update(data) {
      const iterates = data.iteration !== null && data.iteration !== undefined;
      fact("resolution", data.resolution_angstrom ? angstrom(data.resolution_angstrom) : iterates && data.status === "running" ? "–" : null);
      fact("particles", data.particles ? count(data.particles) : null);
      fact("classes", data.classes && data.classes > 1 ? count(data.classes) : null);
      const limit = data.iterations ? ` of ${data.status === "running" ? "at most " : ""}${data.iterations}` : "";
      fact("iterations", iterates ? `${data.iteration}${limit}` : null);
      for (const [name, [label, text]] of Object.entries(NUMBERS)) {
        const value = (data.numbers || {})[name];
        fact(label, value === undefined ? null : text(value));
      }
      const kept = data.status === "running" || typeof data.wall_seconds === "number";
      fact("time", kept ? seconds(data.wall_seconds) : null);
      const left = data.status === "running" ? data.most_left_seconds || data.left_seconds : null;
      fact("at most left", left === null || left === undefined ? null : seconds(left));
      fact("memory, peak", kept ? bytes(data.memory_bytes) : null);
    },
  };
}

// an option's value with its unit, or what it is where it was not given
export function parameterText(p) {
  if (p.value === null) return inAngstrom(p.unset);
  return `${valueText(p.value)}${p.unit ? ` ${inAngstrom(p.unit)}` : ""}`;
}

export function parameterTable(data) {
  const row = (p) =>
    h(
      "tr",
      { class: p.default ? "dim" : "", title: p.help },
      h("td", {}, optionName(p.name)),
      h("td", {}, parameterText(p) || "not set"),
    );
  return h(
    "table",
    { class: "numbers named" },
    h("tbody", {}, data.parameters.filter((p) => !p.default).map(row), data.parameters.filter((p) => p.default).map(row)),
  );
}

export function valueText(value) {
  if (Array.isArray(value)) return value.map(valueText).join(", ");
  if (value === true) return "yes";
  if (value === false) return "no";
  return typeof value === "number" ? digits(value) : String(value);
}

export function repeatPanel(data) {
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "To repeat it"),
    h("p", { class: "small quiet" }, `In the shell, from ${data.working_directory || "any folder"}:`),
    h("pre", { class: "mono" }, data.shell),
    h("p", { class: "small quiet" }, "In Python:"),
    h("pre", { class: "mono" }, data.python),
  );
}

export function methodsPanel(data) {
  if (!data.methods) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "For the methods section"),
    h("p", {}, withAngstrom(data.methods)),
    h("h3", {}, "To cite"),
    h("ul", { class: "small" }, data.references.map((one) => h("li", {}, one))),
  );
}

// What the job told on its way, the last lines in view.
export function messagesPanel(data) {
  if (!data.messages?.length) return null;
  return h("section", { class: "panel", "aria-label": "Messages" }, h("h2", {}, "What it told"),
    h("pre", { class: "told", tabindex: "0" }, data.messages.join("\n")));
}

export function machinePanel(data) {
  const rows = [
    ["status", data.message ? `${data.status}: ${data.message}` : data.status],
    ["folder", data.folder],
    ["started", data.started],
    ["ended", data.ended],
    ["CPU time", seconds(data.cpu_seconds)],
    ["seed", data.seed],
    ["runs", data.runs],
    ...Object.entries(data.machine).map(([k, v]) => [k, v]),
    ...Object.entries(data.versions).map(([k, v]) => [k, v]),
    ...Object.entries(data.results).filter(([k, v]) => k !== "summary" && typeof v !== "object").map(([k, v]) => [words(k), typeof v === "number" ? digits(v) : v]),
  ];
  return h(
    "table",
    { class: "numbers keys" },
    h(
      "tbody",
      {},
      rows
        .filter(([, v]) => v !== null && v !== undefined && v !== "")
        .map(([k, v]) => h("tr", {}, h("th", {}, k), h("td", {}, String(v)))),
    ),
  );
}
