// 2D classes: looked at, sorted, filtered, chosen, and their particles written to a STAR.
import { address, getJson, post } from "./api.js";
import { angstrom, count, digits, h, setText, toast } from "./dom.js";

const SIDE = 102;
const ORDERS = {
  number: ["number", (a, b) => a.number - b.number],
  size: ["particles, most first", (a, b) => b.size - a.size],
  resolution: ["resolution, best first", (a, b) => (a.resolution_angstrom ?? 1e9) - (b.resolution_angstrom ?? 1e9)],
  likelihood: ["log likelihood, best first", (a, b) => (b.log_likelihood ?? -1e30) - (a.log_likelihood ?? -1e30)],
};

export function classChooser(id, go) {
  const panel = h("section", { class: "panel", hidden: true, "aria-label": "2D classes" });
  const tiles = h("div", { class: "tiles" });
  const told = h("b", {});
  const chosen = new Set();
  let table = [];
  let made = new Map();
  let sheet = null;
  let known = "";
  const field = (label, input) => h("label", { class: "small" }, `${label} `, input);
  const number = (name, step) => {
    const input = h("input", { type: "number", min: "0", step, "aria-label": name });
    input.style.width = "6.5em";
    input.addEventListener("input", draw);
    return input;
  };
  const smallest = number("Particles at least", "1");
  const worst = number("Resolution at worst, in Å", "0.1");
  const least = number("Log likelihood at least", "any");
  least.removeAttribute("min");
  const order = h("select", { "aria-label": "Order" }, Object.entries(ORDERS).map(([key, [text]]) => h("option", { value: key }, text)));
  order.addEventListener("change", draw);
  const out = h("input", { type: "text", "aria-label": "Name of the STAR to write" });
  out.style.width = "24ch";
  const strip = h("img", { class: "strip", alt: "Ten of the chosen particles", hidden: true });
  const write = h("button", { class: "main changes", onclick: save }, "Write STAR");
  const button = (text, what) => h("button", { onclick: what }, text);
  panel.append(
    h("div", { class: "head" }, h("h2", {}, "2D classes"), h("span", { class: "grow" }), field("Order", order)),
    h("div", { class: "bar" }, field("Particles ≥", smallest), field("Resolution ≤ Å", worst), field("Log likelihood ≥", least),
      button("Choose those shown bright", () => choose(bright().map((one) => one.number))),
      button("Invert", () => choose(table.map((one) => one.number).filter((k) => !chosen.has(k)))),
      button("None", () => choose([]))),
    tiles,
    h("div", { class: "sticky" },
      h("div", { class: "bar" }, told, h("span", { class: "grow" }), button("Look at ten", look), field("Write", out), write),
      strip),
  );

  function bright() {
    return table.filter((one) =>
      (!smallest.value || one.size >= Number(smallest.value)) &&
      (!worst.value || (one.resolution_angstrom !== null && one.resolution_angstrom <= Number(worst.value))) &&
      (!least.value || (one.log_likelihood ?? -Infinity) >= Number(least.value)));
  }

  function choose(numbers) {
    chosen.clear();
    for (const k of numbers) chosen.add(k);
    drawChoice();
  }

  function toggle(k) {
    if (chosen.has(k)) chosen.delete(k);
    else chosen.add(k);
    drawChoice();
  }

  function drawChoice() {
    for (const [k, tile] of made) tile.setAttribute("aria-pressed", String(chosen.has(k)));
    const total = table.reduce((sum, one) => sum + one.size, 0);
    const picked = table.filter((one) => chosen.has(one.number)).reduce((sum, one) => sum + one.size, 0);
    const share = total ? ` (${((100 * picked) / total).toFixed(0)} %)` : "";
    setText(told, `${chosen.size} of ${table.length} classes, ${count(picked) || 0} of ${count(total)} particles${share}`);
    write.disabled = !picked;
    strip.hidden = true;
  }

  function makeTile(one) {
    const canvas = h("canvas", { width: SIDE, height: SIDE });
    return h(
      "button",
      { class: "tile", "aria-pressed": "false", "data-class": one.number, onclick: () => toggle(one.number) },
      canvas,
      h("span", { class: "line" }, h("span", {}, `# ${one.number}`), h("span", {}, angstrom(one.resolution_angstrom) || "none")),
      h("span", { class: "line quiet" }, h("span", {}, count(one.size)), h("span", {}, `${(100 * one.share).toFixed(1)} %`)),
    );
  }

  function paint() {
    if (!sheet) return;
    const wide = Math.max(1, Math.ceil(Math.sqrt(table.length)));
    const side = sheet.naturalWidth / wide;
    for (const [k, tile] of made) {
      const ctx = tile.firstChild.getContext("2d");
      const [x, y] = [(k - 1) % wide, Math.floor((k - 1) / wide)];
      ctx.drawImage(sheet, x * side, y * side, side, side, 0, 0, SIDE, SIDE);
    }
    tiles.dataset.painted = String(made.size);
  }

  function draw() {
    const shown = new Set(bright().map((one) => one.number));
    const sorted = [...table].sort((a, b) => ORDERS[order.value][1](a, b) || a.number - b.number);
    sorted.forEach((one, k) => {
      const tile = made.get(one.number);
      tile.classList.toggle("faint", !shown.has(one.number));
      if (tiles.children[k] !== tile) tiles.insertBefore(tile, tiles.children[k] || null);
    });
    drawChoice();
  }

  function look() {
    strip.src = address("api/some-particles", { id, classes: [...chosen].sort((a, b) => a - b).join(",") });
    strip.hidden = false;
  }

  async function save() {
    write.disabled = true;
    try {
      const classes = [...chosen].sort((a, b) => a - b);
      const done = await post("api/select", { id, classes, out: out.value });
      toast(`${count(done.kept)} of ${count(done.of)} particles are in ${done.out}`);
      go("job", { id: done.out });
    } catch (error) {
      toast(error.message);
      write.disabled = false;
    }
  }

  return {
    panel,
    update(data) {
      const now = JSON.stringify(data.classes2d);
      panel.hidden = !data.classes2d.length;
      if (panel.hidden || now === known) return;
      known = now;
      table = data.classes2d.map((one) => ({ ...one }));
      made = new Map(table.map((one) => [one.number, makeTile(one)]));
      tiles.replaceChildren();
      out.value ||= `${data.id}_selected.star`;
      draw();
      const image = new Image();
      image.onload = () => {
        sheet = image;
        paint();
      };
      image.src = address("api/classes", { id, v: data.ended });
      getJson("api/class-likelihoods", { id }).then((found) => {
        for (const one of table) {
          one.log_likelihood = found[one.number] ?? null;
          const tile = made.get(one.number);
          if (one.log_likelihood !== null) tile.title = `mean log likelihood ${digits(one.log_likelihood)}`;
        }
        draw();
      }).catch(() => {});
    },
    key(event) {
      const at = [...tiles.children].indexOf(document.activeElement);
      if (at < 0) return false;
      const wide = Math.max(1, Math.floor((tiles.clientWidth + 8) / 120));
      const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide, j: 1, k: -1 };
      if (!moves[event.key]) return false;
      const next = tiles.children[Math.min(tiles.children.length - 1, Math.max(0, at + moves[event.key]))];
      next.focus();
      return true;
    },
  };
}
