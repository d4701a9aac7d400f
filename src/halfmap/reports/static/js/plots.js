// Curves with units, a legend that stays in place, and PNG and CSV of each.
import { angstrom, csvOf, digits, h, onTheme, save, setText, variable } from "./dom.js";

// Okabe and Ito's colours, told apart by everybody; dashes say it again
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [], []];
const HEIGHT = 250;

// pixels beside a plot for its numbers, the widest of them whole
function roomFor(u, values) {
  const longest = Math.max(0, ...(values || []).map((text) => String(text ?? "").length));
  return Math.max(56, 16 + 8 * longest);
}

export function colour(k) {
  return COLOURS[k % COLOURS.length];
}

// frequencies are told as the resolution that a microscopist thinks in
export function resolutionTick(frequency) {
  if (frequency <= 0) return "∞";
  const value = 1 / frequency;
  return value >= 10 ? value.toFixed(0) : value.toFixed(1);
}

// `spec`: title, x {label, tick}, y {label, range}, lines: horizontal ones with a name; `update`
// takes x (one array) and series [{label, values, colour, dash, faint}]
export function curvePlot(spec) {
  const title = h("h3", {}, spec.title);
  const say = h("div", { class: "say" }, " ");
  const legend = h("div", { class: "legend" });
  const place = h("div", {});
  const panel = h(
    "section",
    { class: "panel plot", "aria-label": spec.title },
    h(
      "div",
      { class: "head" },
      title,
      h("span", { class: "grow" }),
      h("button", { class: "plain", onclick: () => savePicture(), title: "Save as picture" }, "PNG"),
      h("button", { class: "plain", onclick: () => saveTable(), title: "Save as table" }, "CSV"),
    ),
    place,
    legend,
    say,
  );
  let plot = null;
  let shown = null;
  let shape = "";

  function options(width) {
    const ink = variable("--quiet");
    const axis = {
      stroke: ink,
      grid: { stroke: variable("--grid"), width: 1 },
      ticks: { stroke: variable("--grid"), width: 1 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      labelSize: 20,
    };
    return {
      width,
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: false, range: spec.x.range }, y: { range: spec.y.range } },
      axes: [
        {
          ...axis,
          label: spec.x.label,
          size: 38,
          values: spec.x.tick ? (u, splits) => splits.map(spec.x.tick) : undefined,
          incrs: spec.x.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] : undefined,
        },
        { ...axis, label: spec.y.label, size: roomFor },
      ],
      series: [
        {},
        ...shown.series.map((s, k) => ({
          label: s.label,
          stroke: s.colour || colour(k),
          dash: s.dash || (s.colour ? [] : DASHES[k % DASHES.length]),
          width: s.width || 2,
          alpha: s.faint || 1,
          spanGaps: false,
          paths: spec.bins ? uPlot.paths.stepped({ align: 1 }) : undefined,
          fill: spec.bins ? `${s.colour || colour(k)}44` : undefined,
          points: { show: shown.x.length <= 40 && spec.points !== false, size: 5 },
        })),
      ],
      hooks: { draw: [drawLines], setCursor: [tell] },
    };
  }

  function drawLines(u) {
    for (const line of spec.lines || []) {
      const y = u.valToPos(line.at, "y", true);
      if (y < u.bbox.top || y > u.bbox.top + u.bbox.height) continue;
      u.ctx.save();
      u.ctx.strokeStyle = variable("--quiet");
      u.ctx.fillStyle = variable("--quiet");
      u.ctx.setLineDash([4, 4]);
      u.ctx.beginPath();
      u.ctx.moveTo(u.bbox.left, y);
      u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
      u.ctx.stroke();
      u.ctx.textAlign = "left";
      u.ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      u.ctx.fillText(line.name, u.bbox.left + 4, y - 4 * devicePixelRatio);
      u.ctx.restore();
    }
  }

  function tell(u) {
    const at = u.cursor.idx;
    if (at === null || at === undefined) return setText(say, " ");
    const x = shown.x[at];
    const where = spec.x.say ? spec.x.say(x) : `${spec.x.label} ${digits(x)}`;
    const values = shown.series
      .filter((s) => !s.faint && s.values[at] !== null && s.values[at] !== undefined)
      .map((s) => `${s.label} ${digits(s.values[at])}`);
    return setText(say, `${where}: ${values.join(", ")}`);
  }

  function draw() {
    const width = Math.max(220, place.clientWidth || 380);
    const data = [shown.x, ...shown.series.map((s) => s.values)];
    const now = `${shown.series.map((s) => `${s.label}${s.colour}${s.faint}`).join("|")}`;
    if (plot && now === shape) {
      if (plot.width !== width) plot.setSize({ width, height: HEIGHT });
      plot.setData(data);
      return;
    }
    if (plot) plot.destroy();
    shape = now;
    plot = new uPlot(options(width), data, place);
    legend.replaceChildren(
      ...shown.series
        .map((s, k) => [s, k])
        .filter(([s]) => !s.faint)
        .map(([s, k]) => {
          const mark = h("i", {});
          mark.style.borderTopColor = s.colour || colour(k);
          const dash = s.dash || (s.colour ? [] : DASHES[k % DASHES.length]);
          if (dash.length) mark.style.borderTopStyle = dash[0] < 4 ? "dotted" : "dashed";
          return h("span", {}, mark, s.label);
        }),
    );
  }

  function saveTable() {
    const columns = [{ name: spec.x.name || spec.x.label, values: shown.x }];
    for (const s of shown.series) columns.push({ name: s.label, values: s.values });
    save(`${spec.file || spec.title}.csv`, csvOf(columns), "text/csv");
  }

  function savePicture() {
    const scale = devicePixelRatio;
    const source = plot.ctx.canvas;
    const picture = document.createElement("canvas");
    picture.width = source.width;
    picture.height = source.height + 64 * scale;
    const ctx = picture.getContext("2d");
    ctx.fillStyle = variable("--panel");
    ctx.fillRect(0, 0, picture.width, picture.height);
    ctx.fillStyle = variable("--ink");
    ctx.font = `600 ${15 * scale}px system-ui, sans-serif`;
    ctx.fillText(spec.title, 12 * scale, 24 * scale);
    ctx.drawImage(source, 0, 36 * scale);
    ctx.font = `${12 * scale}px system-ui, sans-serif`;
    let left = 12 * scale;
    shown.series.forEach((s, k) => {
      if (s.faint) return;
      ctx.fillStyle = s.colour || colour(k);
      ctx.fillRect(left, picture.height - 17 * scale, 16 * scale, 4 * scale);
      ctx.fillStyle = variable("--ink");
      ctx.fillText(s.label, left + 22 * scale, picture.height - 11 * scale);
      left += ctx.measureText(s.label).width + 40 * scale;
    });
    picture.toBlob((blob) => save(`${spec.file || spec.title}.png`, blob));
  }

  const watcher = new ResizeObserver(() => shown && place.clientWidth && draw());
  watcher.observe(place);
  onTheme(() => {
    shape = "";
    if (shown) draw();
  });
  return {
    panel,
    update(x, series) {
      shown = { x, series };
      if (place.isConnected) draw();
    },
    retitle(text) {
      setText(title, text);
      spec.title = text;
    },
  };
}

export const fscAxes = {
  x: {
    label: "resolution (Å)",
    name: "spatial frequency (1/Å)",
    tick: resolutionTick,
    say: (f) => (f > 0 ? `at ${angstrom(1 / f)}` : "at 0"),
  },
  y: { label: "Fourier shell correlation", range: [-0.1, 1.05] },
  lines: [
    { at: 0.143, name: "0.143" },
    { at: 0.5, name: "0.5" },
  ],
  points: false,
};

// A figure that a job left as numbers.
export function figurePlot({ title, x_label: label, y_label: unit, kind, x_kind: axis, lines }) {
  const angstroms = { resolution: (s) => 1 / s, squared: (s) => 1 / Math.sqrt(s) }[axis];
  const tick = angstroms && ((s) => (s > 0 ? angstroms(s).toFixed(angstroms(s) >= 10 ? 0 : 1) : "∞"));
  const name = { resolution: "spatial frequency (1/Å)", squared: "squared spatial frequency (1/Å²)" }[axis];
  const say = angstroms && ((s) => (s > 0 ? `at ${angstrom(angstroms(s))}` : "at 0"));
  return curvePlot({
    title,
    x: { label, tick, name, say },
    y: { label: unit, range: kind === "bins" ? (u, low, high) => [0, 1.05 * high || 1] : undefined },
    lines: Object.entries(lines || {}).map(([told, at]) => ({ at, name: told })),
    bins: kind === "bins",
    points: false,
  });
}

// viridis, at sixteenths
const VIRIDIS = [
  [68, 1, 84], [72, 26, 108], [71, 47, 125], [65, 68, 135], [57, 86, 140], [49, 104, 142],
  [42, 120, 142], [35, 136, 142], [31, 152, 139], [34, 168, 132], [53, 183, 121], [84, 197, 104],
  [122, 209, 81], [165, 219, 54], [210, 226, 27], [253, 231, 37],
];

// blue is fine, red is coarse, as in ChimeraX; told apart by colour-blind people (Brewer's RdYlBu)
const FINE_TO_COARSE = [
  [69, 117, 180], [116, 173, 209], [171, 217, 233], [224, 243, 248], [255, 255, 191],
  [254, 224, 144], [253, 174, 97], [244, 109, 67], [215, 48, 39],
];

function between(colours, share) {
  const at = Math.min(1, Math.max(0, share)) * (colours.length - 1);
  const k = Math.min(colours.length - 2, Math.floor(at));
  return colours[k].map((c, i) => Math.round(c + (colours[k + 1][i] - c) * (at - k)));
}

export function viridis(share) {
  return between(VIRIDIS, share);
}

export function fineToCoarse(share) {
  return between(FINE_TO_COARSE, share);
}

// A bar of colours from left to right.
export function colourBar(colours, width = 160, height = 10) {
  const bar = h("canvas", { width, height, role: "img" });
  const ctx = bar.getContext("2d");
  for (let i = 0; i < width; i += 1) {
    ctx.fillStyle = `rgb(${colours(i / (width - 1)).join(",")})`;
    ctx.fillRect(i, 0, 1, height);
  }
  return bar;
}

// The sphere in Mollweide's equal-area projection. `valueAt(tilt, rot)` in radians gives a share of
// the largest value, or null; a ring is drawn round `marked`, [rot, tilt] in degrees.
export function mollweide(canvas, valueAt, marked = null) {
  const width = canvas.width;
  const height = canvas.height;
  const ctx = canvas.getContext("2d");
  const picture = ctx.createImageData(width, height);
  for (let j = 0; j < height; j += 1) {
    const y = 1 - (2 * (j + 0.5)) / height;
    const theta = Math.asin(y);
    const latitude = Math.asin((2 * theta + Math.sin(2 * theta)) / Math.PI);
    for (let i = 0; i < width; i += 1) {
      const x = ((2 * (i + 0.5)) / width - 1) / Math.cos(theta);
      if (Math.abs(x) > 1) continue;
      const value = valueAt(Math.PI / 2 - latitude, x * Math.PI);
      if (value === null) continue;
      const at = 4 * (j * width + i);
      const [r, g, b] = viridis(value);
      picture.data.set([r, g, b, 255], at);
    }
  }
  ctx.putImageData(picture, 0, 0);
  ctx.strokeStyle = "rgba(255,255,255,0.35)";
  ctx.fillStyle = "rgba(255,255,255,0.85)";
  ctx.font = "12px system-ui, sans-serif";
  ctx.lineWidth = 1;
  const project = (latitude, longitude) => {
    let t = latitude;
    for (let n = 0; n < 12; n += 1) {
      const slope = 2 + 2 * Math.cos(2 * t);
      if (slope < 1e-9) break;
      t -= (2 * t + Math.sin(2 * t) - Math.PI * Math.sin(latitude)) / slope;
    }
    return [
      (width / 2) * (1 + (longitude / Math.PI) * Math.cos(t)),
      (height / 2) * (1 - Math.sin(t)),
    ];
  };
  const line = (points) => {
    ctx.beginPath();
    points.forEach(([x, y], k) => (k ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
    ctx.stroke();
  };
  const range = (n) => Array.from({ length: n + 1 }, (_, k) => -1 + (2 * k) / n);
  for (const tilt of [30, 60, 90, 120, 150]) {
    const latitude = ((90 - tilt) * Math.PI) / 180;
    line(range(60).map((u) => project(latitude, u * Math.PI)));
  }
  for (const rot of [-120, -60, 0, 60, 120]) {
    line(range(60).map((u) => project((u * Math.PI) / 2, (rot * Math.PI) / 180)));
    const [x, y] = project(0, (rot * Math.PI) / 180);
    ctx.fillText(`${rot}°`, x + 3, y - 4);
  }
  if (marked) {
    const rot = ((((marked[0] + 180) % 360) + 360) % 360) - 180;
    const [x, y] = project(((90 - marked[1]) * Math.PI) / 180, (rot * Math.PI) / 180);
    ctx.strokeStyle = "#ffffff";
    ctx.lineWidth = 2;
    ctx.beginPath();
    ctx.arc(x, y, 11, 0, 2 * Math.PI);
    ctx.stroke();
  }
}

// Which cell of the bands of tilt a direction lies in.
export function bandedCell(counts, tilt, rot) {
  const band = Math.min(counts.length - 1, Math.floor((tilt / Math.PI) * counts.length));
  const cells = counts[band].length;
  const turn = (((rot + Math.PI) / (2 * Math.PI)) % 1) * cells;
  return [band, Math.min(cells - 1, Math.max(0, Math.floor(turn)))];
}

export function directionPlot(found) {
  const canvas = h("canvas", { width: 720, height: 360, role: "img" });
  canvas.setAttribute("aria-label", "Density of viewing directions over the sphere");
  canvas.style.width = "100%";
  canvas.style.aspectRatio = "2";
  const total = found.counts.flat().reduce((a, b) => a + b, 0);
  const density = found.counts.map((row, b) => row.map((n) => n / found.areas[b] / total));
  const most = Math.max(...density.flat(), 1);
  mollweide(canvas, (tilt, rot) => {
    const [band, cell] = bandedCell(density, tilt, rot);
    return density[band][cell] / most;
  });
  const scale = colourBar(viridis);
  const share = (value) => `${(100 * value).toFixed(0)} %`;
  const saveTable = () => {
    const rows = found.counts.flatMap((row, b) => row.map((n, c) => [b, c, row.length, n]));
    const step = 180 / found.counts.length;
    save(
      "viewing directions.csv",
      csvOf([
        { name: "tilt (deg)", values: rows.map(([b]) => (b + 0.5) * step) },
        { name: "rot (deg)", values: rows.map(([, c, n]) => -180 + ((c + 0.5) / n) * 360) },
        { name: "views, with symmetry mates", values: rows.map((r) => r[3]) },
      ]),
      "text/csv",
    );
  };
  const savePicture = () => canvas.toBlob((blob) => save("viewing directions.png", blob));
  return h(
    "section",
    { class: "panel plot", "aria-label": "Viewing directions" },
    h(
      "div",
      { class: "head" },
      h("h3", {}, `Viewing directions${found.iteration ? ` after iteration ${found.iteration}` : ""}`),
      h("span", { class: "grow" }),
      h("button", { class: "plain", onclick: savePicture }, "PNG"),
      h("button", { class: "plain", onclick: saveTable }, "CSV"),
    ),
    canvas,
    h(
      "div",
      { class: "legend" },
      h("span", {}, "0 ", scale, ` ${most.toFixed(1)} times the even density`),
    ),
    h(
      "p",
      { class: "small" },
      `${found.particles.toLocaleString("en-US")} particles${found.symmetry ? `, ${found.symmetry}` : ""}; rot along, tilt ` +
        `down. Fourier coverage ${found.coverage.toFixed(2)} of an even one; ` +
        `${share(found.missing)} of Fourier directions are hardly seen.`,
    ),
  );
}
