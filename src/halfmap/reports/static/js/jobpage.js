// One job: where it stands, its maps, figures, classes, directions, parameters and files.
import { address, getJson, post } from "./api.js";
import { classChooser } from "./classes.js";
import { bytes, h, setText, toast, withAngstrom } from "./dom.js";
import {
  jobFacts, jobFigures, machinePanel, messagesPanel, methodsPanel, parameterTable, repeatPanel,
} from "./figures.js";
import { nextSteps, particlesOf } from "./following.js";
import { jobs, onChange } from "./live.js";
import { mapPanel, sourcesOf } from "./maps.js";
import { directionPlot } from "./plots.js";

const BUTTONS = 3; // of what can follow; the rest in a list

// Whether the page shows as a curve or a map what a picture shows.
function drawnAgain(data, name) {
  if (name === "directional_fsc.png") return false;
  if (name === "guinier.png") return data.figures.length > 0;
  if (data.maps.some((one) => one.file === data.id.split("/").pop() && one.file.replace(/\.mrc$/, ".png") === name)) return true;
  return /fsc|convergence|^map(_sharpened)?\.png|^class\d+\.png/.test(name);
}

export function jobPage(main, go, query) {
  const id = query.id || "";
  const title = h("h1", {}, id);
  const word = h("span", { class: "status" });
  const message = h("p", { class: "message", hidden: true });
  const bar = h("div", { class: "progress" }, h("i", {}));
  const found = h("p", { class: "found", hidden: true });
  const buttons = h("div", { class: "bar" });
  const facts = jobFacts();
  const figures = jobFigures();
  const maps = mapPanel([], { title: "Maps" });
  const classes = classChooser(id, go);
  const directions = h("div", {});
  const details = h("div", {});
  const told = h("div", {});
  const pictures = h("section", { class: "panel", hidden: true });
  main.replaceChildren(
    h("section", { class: "panel" }, h("div", { class: "head" }, title, word, h("span", { class: "grow" }), buttons), bar, facts.root, found, message),
    maps.panel,
    classes.panel,
    figures.root,
    directions,
    pictures,
    told,
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
      shown.push(h("button", { class: "changes", onclick: () => confirm("Stop this job? It can be resumed.") && act("api/stop", { id }, "The job was asked to stop.") }, "Stop"));
    }
    const resumable = data.parameters.length && ["stopped", "killed", "failed"].includes(data.status);
    if (resumable) shown.push(h("button", { class: "main changes", onclick: () => act("api/resume", { id }, "The job goes on.") }, "Resume"));
    const steps = nextSteps(data);
    for (const [text, given] of steps.slice(0, BUTTONS)) {
      shown.push(h("button", { class: "changes", onclick: () => follow(given) }, text));
    }
    if (steps.length > BUTTONS) {
      const more = h("select", { class: "changes", "aria-label": "Go on with" }, h("option", { value: "" }, "Go on with …"),
        steps.slice(BUTTONS).map(([text], k) => h("option", { value: String(k) }, text)));
      more.addEventListener("change", () => more.value && follow(steps[BUTTONS + Number(more.value)][1]));
      shown.push(more);
    }
    if (particlesOf(data)) {
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
    setText(found, withAngstrom(row.summary));
    found.hidden = !row.summary;
  }

  function drawMessages(data) {
    const now = `${data.messages.length}${data.messages.at(-1)}`;
    if (told.dataset.now === now) return;
    told.dataset.now = now;
    told.replaceChildren(messagesPanel(data) || "");
    const lines = told.querySelector("pre");
    if (lines) lines.scrollTop = lines.scrollHeight;
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
    const others = data.pictures.filter((name) => !drawnAgain(data, name));
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
      drawMessages(data);
      drawDetails(data);
      const threeD = data.maps.length && data.command !== "simulate";
      const final = data.files.some((one) => one.name === "particles.star");
      const known = final ? data.ended : data.status === "finished" ? directed : data.shown;
      if (threeD && known !== directed) {
        directed = known;
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
    const now = `${row.iteration}${row.status}${row.resolution_angstrom}${row.ended}${row.stage}${row.shown}`;
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
