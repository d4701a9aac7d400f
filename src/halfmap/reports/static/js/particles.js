// Single particles: a table of them, and one with all that is known of it.
import { getJson } from "./api.js";
import { angstrom, count, csvOf, digits, h, save, setText, toast, words } from "./dom.js";
import { micrographView } from "./micrograph.js";
import { colour, colourBar, curvePlot, mollweide, resolutionTick, viridis } from "./plots.js";

const SORTS = { "": "as in the file", class: "class", "-largest_weight": "sure of the pose first", largest_weight: "least sure first",
  "-log_likelihood": "log likelihood, best first", log_likelihood: "log likelihood, worst first", "-score": "score, best first" };

export function particlePage(main, go, query) {
  const id = query.id || "";
  const body = h("tbody", {});
  const headRow = h("tr", {});
  const table = h("table", { class: "numbers picks" }, h("thead", {}, headRow), body);
  const told = h("span", { class: "quiet small" });
  const sort = h("select", { "aria-label": "Order" }, Object.entries(SORTS).map(([key, text]) => h("option", { value: key }, text)));
  const only = h("input", { type: "number", min: "1", "aria-label": "Class", placeholder: "all" });
  only.style.width = "6em";
  const back = h("button", { onclick: () => page(-1) }, "Earlier");
  const forth = h("button", { onclick: () => page(1) }, "Later");
  const one = h("div", {});
  let first = 0;
  let rows = [];
  let total = 0;
  let shown = -1;
  let asked = 0;
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, "Particles of ", h("a", { href: `#/job?${new URLSearchParams({ id })}` }, id)), h("span", { class: "grow" }),
      h("label", { class: "small" }, "Class ", only), h("label", { class: "small" }, "Order ", sort)),
    h("div", { class: "pair" },
      h("section", { class: "panel" }, h("div", { class: "bar" }, back, forth, told), table),
      one),
  );
  sort.addEventListener("change", () => load(0));
  only.addEventListener("input", () => load(0));

  function page(step) {
    const next = first + 100 * step;
    if (next >= 0 && next < total) load(next);
  }

  async function load(from) {
    try {
      const found = await getJson("api/particles", { id, first: from, sort: sort.value, class: only.value });
      first = found.first;
      total = found.of;
      rows = found.index;
      const names = Object.keys(found.columns);
      headRow.replaceChildren(h("th", {}, "#"), ...names.map((n) => h("th", {}, words(n).replace("angstrom", "(Å)"))));
      body.replaceChildren(
        ...rows.map((index, k) =>
          h("tr", { tabindex: "0", "data-index": index, onclick: () => show(k) }, h("td", { class: "number" }, count(index + 1)),
            ...names.map((n) => {
              const value = found.columns[n][k];
              return h("td", {}, typeof value === "number" ? digits(value) : value);
            }))),
      );
      setText(told, total ? `${count(first + 1)} to ${count(first + rows.length)} of ${count(total)}` : "none");
      back.disabled = first === 0;
      forth.disabled = first + rows.length >= total;
      if (rows.length) show(Number.isFinite(Number(query.index)) && shown < 0 ? Math.max(0, rows.indexOf(Number(query.index))) : 0);
    } catch (error) {
      toast(error.message);
    }
  }

  function show(k) {
    shown = k;
    [...body.children].forEach((row, n) => row.classList.toggle("chosen", n === k));
    look(rows[k]);
  }

  async function look(index) {
    asked += 1;
    const mine = asked;
    if (!one.firstChild) one.append(h("p", { class: "quiet" }, "Reading the particle."));
    try {
      const found = await getJson("api/particle", { id, index });
      if (mine !== asked) return;
      const grid = draw(found);
      addMicrograph(index, () => mine === asked);
      if (!found.weighed) return;
      const wait = h("section", { class: "panel plot quiet" }, "Weighing all directions from which it may have been seen.");
      grid.prepend(wait);
      const weighed = await getJson("api/particle", { id, index, posterior: 1 });
      if (mine === asked) wait.replaceWith(sphere(weighed));
    } catch (error) {
      if (mine === asked) one.replaceChildren(h("p", { class: "message bad" }, error.message));
    }
  }

  async function addMicrograph(index, wanted) {
    const panel = h("section", { class: "panel", "aria-label": "Micrograph" }, h("h2", {}, "Micrograph"), h("p", { class: "quiet" }, "Reading the micrograph."));
    one.insertBefore(panel, one.lastElementChild); // its row comes last
    try {
      const found = await getJson("api/particle", { id, index, micrograph: 1 });
      if (wanted()) panel.replaceChildren(...micrographView(found, goTo));
    } catch (error) {
      panel.replaceChildren(h("h2", {}, "Micrograph"), h("p", { class: "message bad" }, error.message));
    }
  }

  // a particle that is clicked on the micrograph, in the table or not
  function goTo(index) {
    const at = rows.indexOf(index);
    if (at >= 0) show(at);
    else look(index);
  }

  function draw(found) {
    const side = `${digits(found.box * found.pixel_angstrom)} Å`;
    const figure = ([name, src]) => h("figure", {}, h("img", { src, alt: name }), h("figcaption", {}, name));
    const parts = [
      h("section", { class: "panel" },
        h("div", { class: "head" }, h("h2", {}, `Particle ${count(found.index + 1)} of ${count(found.of)}`), h("span", { class: "quiet small" }, `box ${side}`),
          found.correlation === undefined ? "" : h("span", { class: "quiet small" }, `correlation of image and projection ${digits(found.correlation)}`)),
        h("div", { class: "looks" }, Object.entries(found.pictures).map(figure))),
    ];
    const grid = h("div", { class: "grid" });
    let later = () => {};
    if (found.ctf) {
      const plot = curvePlot({ title: "CTF along the larger defocus", x: { label: "resolution (Å)", name: "spatial frequency (1/Å)", tick: resolutionTick, say: (f) => (f > 0 ? `at ${angstrom(1 / f)}` : "at 0") },
        y: { label: "contrast transfer", range: [-1.05, 1.05] }, lines: [{ at: 0, name: "" }], points: false });
      grid.append(plot.panel);
      later = () => plot.update(found.ctf.frequency, [{ label: "CTF", values: found.ctf.ctf, colour: colour(0) }]);
    }
    const facts = h("section", { class: "panel" }, h("h2", {}, "Its row"), h("table", { class: "numbers keys" }, h("tbody", {}, Object.entries(found.facts).map(([k, v]) => h("tr", {}, h("th", {}, k), h("td", {}, v))))));
    one.replaceChildren(...parts, grid, facts);
    later();
    return grid;
  }

  function sphere(found) {
    const canvas = h("canvas", { width: 640, height: 320, role: "img" });
    canvas.setAttribute("aria-label", "Posterior over viewing directions");
    canvas.style.width = "100%";
    canvas.style.aspectRatio = "2";
    const grid = found.posterior;
    mollweide(canvas, (tilt, rot) => {
      const r = Math.min(grid.length - 1, Math.floor((tilt / Math.PI) * grid.length));
      const c = Math.min(grid[0].length - 1, Math.max(0, Math.floor(((rot + Math.PI) / (2 * Math.PI)) * grid[0].length)));
      return grid[r][c];
    }, found.found);
    const scale = colourBar(viridis, 120);
    const [rot, tilt] = found.found;
    const name = `posterior of particle ${found.index + 1}`;
    const saveTable = () => {
      const cells = grid.flatMap((row, r) => row.map((value, c) => [((r + 0.5) * 180) / grid.length, -180 + ((c + 0.5) * 360) / row.length, value]));
      const columns = ["tilt (deg)", "rot (deg)", "posterior, share of its largest value"];
      save(`${name}.csv`, csvOf(columns.map((label, k) => ({ name: label, values: cells.map((cell) => cell[k]) }))), "text/csv");
    };
    const savePicture = () => canvas.toBlob((blob) => save(`${name}.png`, blob));
    const head = h("div", { class: "head" }, h("h3", {}, "Posterior over viewing directions, P(φ | X, V)"), h("span", { class: "grow" }),
      h("button", { class: "plain", onclick: savePicture }, "PNG"), h("button", { class: "plain", onclick: saveTable }, "CSV"));
    return h("section", { class: "panel plot" }, head, canvas,
      h("div", { class: "legend" }, h("span", {}, "0 ", scale, " its largest value")),
      h("p", { class: "small" }, `Spread over ${digits(Number(found.directions.toFixed(1)))} of 768 directions (symmetry mates of ${found.symmetry} counted once), ` +
        `scored to ${angstrom(found.scored_to_angstrom)}. Found (ring): rot ${rot.toFixed(1)}°, tilt ${tilt.toFixed(1)}°.`));
  }

  load(0);
  return {
    key(event) {
      const moves = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
      if (!moves[event.key] || ["INPUT", "SELECT"].includes(document.activeElement.tagName)) return false;
      const next = Math.min(rows.length - 1, Math.max(0, shown + moves[event.key]));
      if (next !== shown) show(next);
      body.children[next]?.scrollIntoView({ block: "nearest" });
      return true;
    },
    go,
  };
}
