// Two jobs beside each other: FSCs in one plot, maps that turn together, numbers in two columns.
import { getJson } from "./api.js";
import { angstrom, bytes, count, h, optionName, seconds, toast } from "./dom.js";
import { parameterText } from "./figures.js";
import { jobs, onChange } from "./live.js";
import { mapPanel, sourcesOf } from "./maps.js";
import { colour, curvePlot, fscAxes } from "./plots.js";

export function compare(main, go, query) {
  const picks = ["a", "b"].map((which) => {
    const select = h("select", { "aria-label": `Job ${which.toUpperCase()}` });
    select.addEventListener("change", () => go("compare", { ...query, [which]: select.value || undefined }));
    return select;
  });
  const place = h("div", {});
  main.replaceChildren(h("div", { class: "bar" }, h("h1", {}, "Compare"), picks[0], "with", picks[1]), place);
  let maps = null;

  function fill() {
    picks.forEach((select, k) => {
      const now = query["ab"[k]] || "";
      const ids = [...jobs().keys()].sort((x, y) => x.localeCompare(y, undefined, { numeric: true }));
      if (select.options.length === ids.length + 1) return;
      select.replaceChildren(h("option", { value: "" }, "a job"), ...ids.map((id) => h("option", { value: id }, id)));
      select.value = now;
    });
  }

  fill();
  const forget = onChange(fill);
  if (!query.a || !query.b) {
    place.append(h("p", { class: "quiet" }, "Choose two jobs. On the list of jobs, Space chooses one, too."));
    return { leave: forget };
  }

  Promise.all([query.a, query.b].map((id) => getJson("api/job", { id })))
    .then((two) => {
      const names = two.map((one) => one.id);
      maps = mapPanel([], { title: "Maps, turning together" });
      const fsc = curvePlot({ ...fscAxes, title: "FSC of the half maps" });
      const resolution = curvePlot({ title: "Resolution by iteration", x: { label: "iteration", whole: true }, y: { label: "resolution (Å)" } });
      const likelihood = curvePlot({ title: "Log likelihood by iteration", x: { label: "iteration", whole: true }, y: { label: "mean, per particle" } });
      place.replaceChildren(
        h("div", { class: "grid" }, fsc.panel, resolution.panel, likelihood.panel),
        maps.panel,
        h("section", { class: "panel" }, h("h2", {}, "Numbers and parameters"), numbers(two)),
      );
      drawFsc(fsc, two, names);
      for (const [plot, name] of [[resolution, "resolution_angstrom"], [likelihood, "mean_log_likelihood"]]) {
        const shown = two.filter((one) => one.series[name]);
        plot.panel.hidden = !shown.length;
        if (shown.length) {
          const joined = uPlot.join(shown.map((one) => [one.series.iteration, one.series[name]]));
          plot.update(joined[0], shown.map((one, k) => ({ label: names[two.indexOf(one)], values: joined[k + 1], colour: colour(3 * two.indexOf(one)) })));
        }
      }
      const sources = two.map((one) => sourcesOf(one, `${one.id}: `));
      const first = sources.map((list) => list.find((one) => one.first) || list[0]).filter(Boolean);
      for (const one of sources.flat()) one.first = first.includes(one);
      maps.update(sources.flat());
    })
    .catch((error) => toast(error.message));

  function drawFsc(plot, two, names) {
    const shown = two.flatMap((one, k) => one.fsc.slice(0, 2).map((curve) => [curve, k]));
    plot.panel.hidden = !shown.length;
    if (!shown.length) return;
    const best = ([curve]) => curve.curves["corrected for the mask"] || curve.curves.unmasked;
    const joined = uPlot.join(shown.map((one) => [one[0].frequency, best(one)]));
    // shells of two boxes lie between each other: a line goes through those of its own
    const filled = joined.slice(1).map((values) => interpolated(joined[0], values));
    plot.update(joined[0], shown.map(([curve, k], n) => ({
      label: `${names[k]}${curve.name === "map" ? "" : ` ${curve.name}`} (${angstrom(curve.resolution_angstrom)})`,
      values: filled[n],
      colour: colour(3 * k),
      dash: curve.name === "map" || curve.name === "class001" ? [] : [6, 4],
    })));
  }

  function interpolated(x, values) {
    const at = values.map((v, k) => (v === null || v === undefined ? -1 : k)).filter((k) => k >= 0);
    return values.map((v, k) => {
      if (v !== null && v !== undefined) return v;
      const right = at.find((n) => n > k);
      const left = at.findLast((n) => n < k);
      if (right === undefined || left === undefined) return null;
      return values[left] + ((values[right] - values[left]) * (x[k] - x[left])) / (x[right] - x[left]);
    });
  }

  function numbers(two) {
    const given = two.map((one) => Object.fromEntries(one.parameters.map((p) => [p.name, parameterText(p)])));
    const all = [...new Set(given.flatMap((one) => Object.keys(one)))];
    const fixed = [
      ["command", two.map((one) => one.command)],
      ["status", two.map((one) => one.status)],
      ["resolution", two.map((one) => angstrom(one.resolution_angstrom))],
      ["particles", two.map((one) => count(one.particles))],
      ["iterations", two.map((one) => count(one.iteration))],
      ["time", two.map((one) => seconds(one.wall_seconds))],
      ["memory, peak", two.map((one) => bytes(one.memory_bytes))],
    ];
    const rows = [...fixed, ...all.map((name) => [optionName(name), given.map((one) => one[name] ?? "")])];
    return h(
      "table",
      { class: "numbers" },
      h("thead", {}, h("tr", {}, h("th", {}, ""), two.map((one) => h("th", {}, one.id)))),
      h("tbody", {}, rows.map(([name, [a, b]]) => {
        const same = a === b;
        return h("tr", { class: same ? "dim" : "" }, h("td", {}, name), h("td", {}, a ?? ""), h("td", {}, b ?? ""));
      })),
    );
  }

  return {
    leave() {
      forget();
      maps?.leave();
    },
  };
}
