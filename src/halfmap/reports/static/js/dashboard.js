// All jobs of the folder, in a tree of what came from what.
import { address, post } from "./api.js";
import { angstrom, bytes, count, h, seconds, setText, toast, when } from "./dom.js";
import { jobs, onChange, started, tree } from "./live.js";

const STATUSES = ["all", "running", "finished", "failed"];

export function dashboard(main, go) {
  let filter = "";
  let status = "all";
  const chosen = new Set();
  const lines = new Map();
  const search = h("input", { type: "search", placeholder: "Filter by name or command  ( / )", "aria-label": "Filter jobs" });
  search.style.width = "min(100%, 30ch)";
  const told = h("span", { class: "quiet small" });
  const chips = STATUSES.map((name) =>
    h("button", { class: "chip", "aria-pressed": String(name === status), onclick: () => pick(name) }, name),
  );
  const compare = h("button", { disabled: true, onclick: () => go("compare", { a: [...chosen][0], b: [...chosen][1] }) }, "Compare");
  const body = h("tbody", {});
  const head = (text, cls = "") => h("th", { class: cls, scope: "col" }, text);
  const table = h(
    "table",
    { class: "jobs" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        head("", "thumb"),
        head("Job"),
        head("Status", "w-status"),
        head("Resolution", "number w-short"),
        head("Particles", "number middle w-short"),
        head("Time", "number middle w-long"),
        head("Left at most", "number wide w-long"),
        head("Memory", "number wide w-short"),
        head("Started", "wide w-when"),
      ),
    ),
    body,
  );
  const empty = h("p", { class: "quiet" }, "No job in this folder yet. Start one with New job, or with halfmap in a shell.");
  const problems = h("div", {});
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, "Jobs"), search, chips, h("span", { class: "grow" }), told, compare,
      h("button", { class: "main changes", onclick: () => go("new") }, "New job")),
    problems,
    table,
    empty,
  );
  search.addEventListener("input", () => {
    filter = search.value.toLowerCase();
    draw();
  });

  function pick(name) {
    status = name;
    chips.forEach((chip, k) => chip.setAttribute("aria-pressed", String(STATUSES[k] === name)));
    draw();
  }

  function matches(row) {
    if (filter && !`${row.id} ${row.command}`.toLowerCase().includes(filter)) return false;
    if (status === "all") return true;
    if (status === "failed") return !["running", "finished"].includes(row.status);
    return row.status === status;
  }

  function makeLine(id) {
    const cells = {};
    const cell = (name, cls = "") => (cells[name] = h("td", { class: cls }));
    const line = h(
      "tr",
      { tabindex: "0", "data-id": id, onclick: (event) => open(event, id) },
      cell("thumb", "thumb"),
      cell("name", "job"),
      cell("status"),
      cell("resolution", "number"),
      cell("particles", "number middle"),
      cell("time", "number middle"),
      cell("left", "number wide"),
      cell("memory", "number wide"),
      cell("started", "quiet small wide"),
    );
    const image = h("img", { alt: "", loading: "lazy", width: "42", height: "42" });
    image.addEventListener("error", () => (image.style.visibility = "hidden"));
    cells.thumb.append(image);
    const branch = h("span", { class: "tree" });
    const name = h("span", { class: "name" });
    const command = h("span", { class: "quiet small" });
    cells.name.append(branch, name, " ", command);
    const word = h("span", { class: "status" });
    const stage = h("span", { class: "quiet small" });
    const bar = h("div", { class: "progress", hidden: true }, h("i", {}));
    cells.status.append(word, " ", stage, bar);
    return { line, cells, image, branch, name, command, word, stage, bar, picture: "" };
  }

  function open(event, id) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) choose(id);
    else go("job", { id });
  }

  function choose(id) {
    if (chosen.has(id)) chosen.delete(id);
    else chosen.add(id);
    if (chosen.size > 2) chosen.delete([...chosen][0]);
    for (const [key, one] of lines) one.line.classList.toggle("chosen", chosen.has(key));
    compare.disabled = chosen.size !== 2;
  }

  function fill(one, row, marks) {
    one.line.dataset.id = row.id;
    setText(one.branch, marks.map((last, k) => (k === marks.length - 1 ? (last ? "└ " : "├ ") : last ? "  " : "│ ")).join(""));
    one.cells.name.style.setProperty("--depth", String(marks.length));
    setText(one.name, row.id === "." ? row.name : row.id);
    setText(one.command, row.command);
    one.line.title = row.message || "";
    one.word.className = `status ${row.status}`;
    setText(one.word, row.status);
    const running = row.status === "running";
    const iteration = row.iteration ? `${row.iteration}${row.iterations ? `/${row.iterations}` : ""}` : "";
    setText(one.stage, running ? `${iteration} ${row.stage || ""}`.trim() : "");
    one.bar.hidden = !running;
    const share = row.total ? Math.min(1, (row.done || 0) / row.total) : 0;
    one.bar.firstChild.style.width = `${(100 * share).toFixed(1)}%`;
    setText(one.cells.resolution, angstrom(row.resolution_angstrom) || "");
    setText(one.cells.particles, count(row.particles));
    setText(one.cells.time, seconds(row.wall_seconds));
    setText(one.cells.left, running ? seconds(row.most_left_seconds ?? row.left_seconds) : "");
    setText(one.cells.memory, bytes(row.memory_bytes));
    setText(one.cells.started, when(row.started));
    // a picture changes with iterations, not with every second
    const picture = address("api/thumbnail", { id: row.id, v: `${row.iteration}-${row.status}-${row.started}` });
    if (picture !== one.picture) {
      one.picture = picture;
      one.image.style.visibility = "";
      one.image.src = picture;
    }
  }

  function draw() {
    const order = tree().filter(({ id }) => matches(jobs().get(id)));
    const searching = filter || status !== "all";
    order.forEach(({ id, lines: marks }, k) => {
      if (!lines.has(id)) lines.set(id, makeLine(id));
      const one = lines.get(id);
      fill(one, jobs().get(id), searching ? [] : marks);
      if (body.children[k] !== one.line) body.insertBefore(one.line, body.children[k] || null);
    });
    while (body.children.length > order.length) {
      const gone = body.lastChild;
      gone.remove();
      if (!jobs().has(gone.dataset.id)) lines.delete(gone.dataset.id);
    }
    const running = [...jobs().values()].filter((row) => row.status === "running").length;
    setText(told, `${jobs().size} jobs, ${running} running${searching ? `, ${order.length} shown` : ""}`);
    empty.hidden = jobs().size > 0;
    table.hidden = !jobs().size;
    const own = (out) => jobs().get(out) || jobs().get(String(out).replace(/\.mrc$/, "_job"));
    const there = (one) => { // its row tells the rest
      const row = own(one.out);
      return row && (row.status === "running" || [row.started, row.ended].some((t) => (t || "") >= one.when));
    };
    const refused = started().filter((one) => one.status === "refused" && !there(one)).slice(0, 3);
    const working = started().filter((one) => one.status === "running" && !there(one));
    const now = JSON.stringify([working, refused].map((list) => list.map((one) => [one.number, one.message])));
    if (problems.dataset.now === now) return; // a button that is being pressed stays
    problems.dataset.now = now;
    problems.replaceChildren(
      ...working.map((one) => h("p", { class: "message" }, h("b", {}, `${one.command} ${one.out || ""} is at work. `), one.shell, " ", stopButton(one))),
      ...refused.map((one) => h("p", { class: "message bad" }, h("b", {}, `${one.command} ${one.out || ""} was refused: `), one.message)),
    );
  }

  // a command without a job folder, or whose folder is not there yet
  function stopButton(one) {
    const ask = () => confirm(`Stop ${one.command} ${one.out || ""}?`) &&
      post("api/stop", { start: one.number }).then(() => toast("It was asked to stop.")).catch((error) => toast(error.message));
    return h("button", { class: "plain changes", onclick: ask, "aria-label": `Stop ${one.command} ${one.out || ""}` }, "Stop");
  }

  function key(event) {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
    if (event.key === "Escape" && typing) {
      search.value = filter = "";
      document.activeElement.blur();
      draw();
      return true;
    }
    if (typing) return false;
    const all = [...body.children];
    const at = all.indexOf(document.activeElement);
    const moves = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
    if (moves[event.key]) {
      const next = all[Math.min(all.length - 1, Math.max(0, at + (at < 0 ? 1 : moves[event.key])))] || all[0];
      next?.focus();
      next?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" && at >= 0) go("job", { id: all[at].dataset.id });
    else if (event.key === " " && at >= 0) choose(all[at].dataset.id);
    else if (event.key === "/") search.focus();
    else return false;
    return true;
  }

  draw();
  const forget = onChange(draw);
  return { key, leave: forget };
}
