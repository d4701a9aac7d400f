// Forms made from the commands' signatures; what they start is the command that they show.
import { getJson, post } from "./api.js";
import { bytes, count, digits, h, inAngstrom, optionName, setText, toast } from "./dom.js";

const ENDINGS = { MAP: ".mrc", STAR: ".star", FILE: ".star", STACK: ".mrcs" }; // of files to be made

// What there is in the folder that an option may be given, by what it says it takes.
function offered(option, inputs) {
  if (option.name === "out") return [];
  const takes = option.metavar || "";
  const folders = inputs.jobs.filter((row) => row.status === "finished" && !/\.\w+$/.test(row.id));
  return [
    ...(/JOB/.test(takes) ? folders.map((row) => row.id) : []),
    ...(/MAP|HALF|MASK/.test(takes) ? inputs.maps : []),
    ...(/STAR|FILE/.test(takes) ? inputs.particles : []),
  ];
}

export function formPage(main, go, query) {
  const picker = h("div", { class: "commands", role: "group", "aria-label": "Command" });
  const place = h("div", {});
  main.replaceChildren(h("h1", {}, "New job"), h("p", {}), picker, place);
  let forms = [];
  let inputs = { particles: [], maps: [], jobs: [] };

  Promise.all([getJson("api/commands"), getJson("api/rows"), getJson("api/inputs").catch(() => inputs)])
    .then(([all, { rows }, found]) => {
      forms = all;
      inputs = { ...found, jobs: rows };
      picker.replaceChildren(
        ...forms.map((one) => h("button", { class: "chip", "data-command": one.command, onclick: () => go("new", { command: one.command }) }, one.command)),
      );
      draw(query.command || "class2d");
    })
    .catch((error) => toast(error.message));

  function freeName(form) {
    const numbers = inputs.jobs.map((row) => Number.parseInt(row.id, 10)).filter((n) => Number.isFinite(n));
    const next = Math.max(0, ...numbers) + 1;
    const out = form.options.find((one) => one.name === "out");
    return `${next}_${form.command}${ENDINGS[out?.metavar] || ""}`;
  }

  function draw(command) {
    const form = forms.find((one) => one.command === command) || forms[0];
    for (const chip of picker.children) chip.setAttribute("aria-pressed", String(chip.dataset.command === form.command));
    const fields = new Map();
    const shell = h("pre", { class: "mono", "aria-label": "The command" });
    const memory = h("p", { class: "small" }, " ");
    const start = h("button", { class: "main", type: "submit" }, "Start");
    const given = { ...query };

    function control(option) {
      const value = given[option.name] ?? (option.name === "out" ? freeName(form) : option.default);
      if (option.kind === "bool") {
        const box = h("input", { type: "checkbox", id: `f-${option.name}` });
        box.checked = value === true || value === "true";
        return { element: box, read: () => box.checked, write: (v) => (box.checked = v === true || v === "true") };
      }
      if (option.choices.length) {
        const select = h("select", { id: `f-${option.name}` });
        if (!option.required && option.default === null) select.append(h("option", { value: "" }, option.unset || "not set"));
        select.append(...option.choices.map((c) => h("option", { value: c }, c)));
        select.value = value ?? "";
        return { element: select, read: () => select.value };
      }
      const listed = offered(option, inputs);
      const list = listed.length ? h("datalist", { id: `l-${option.name}` }, listed.map((v) => h("option", { value: v }))) : "";
      const shown = Array.isArray(value) ? value.join(", ") : value ?? "";
      const numeric = ["int", "float"].includes(option.kind) && !option.several;
      const input = h("input", {
        id: `f-${option.name}`,
        type: "text",
        inputmode: numeric ? "decimal" : null,
        value: String(shown),
        placeholder: inAngstrom(option.unset) || option.metavar || "",
        list: listed.length ? `l-${option.name}` : null,
        autocomplete: "off",
        spellcheck: "false",
      });
      return { element: h("span", {}, input, list), input, read: () => input.value.trim() };
    }

    function field(option) {
      const made = control(option);
      const wrong = h("div", { class: "wrong", role: "alert", hidden: true });
      const limits = option.limits || option.unit;
      const row = h(
        "div",
        { class: "field", "data-name": option.name },
        h("label", { for: `f-${option.name}` }, optionName(option.name), option.required ? " *" : ""),
        h("div", { class: "input" }, ...(made.input ? [...made.element.childNodes] : [made.element]), option.unit ? h("span", { class: "quiet small" }, inAngstrom(option.unit)) : ""),
        h("div", { class: "help" }, `${option.help}${limits ? ` (${inAngstrom(limits)})` : ""}.`),
        wrong,
      );
      fields.set(option.name, { option, read: made.read, row, wrong });
      return row;
    }

    const important = form.options.filter((o) => o.required || ["classes", "symmetry", "diameter_angstrom", "method", "reference", "initial_lowpass_angstrom"].includes(o.name) || given[o.name] !== undefined);
    const rest = form.options.filter((o) => !important.includes(o));
    const element = h(
      "form",
      { class: "form", novalidate: true },
      h("div", { class: "panel" },
        h("h2", {}, form.command), h("p", { class: "small quiet" }, form.help),
        important.map(field),
        h("details", {}, h("summary", {}, `${rest.length} further options`), rest.map(field))),
      h("div", { class: "panel" },
        h("h2", {}, "What will run"), shell, memory,
        h("div", { class: "bar" }, start)),
    );
    place.replaceChildren(element);

    function values() {
      const told = {};
      for (const [name, one] of fields) {
        const value = one.read();
        if (value === "" || value === one.option.default) continue;
        if (one.option.kind !== "bool" && String(one.option.default ?? "") === value) continue;
        told[name] = value;
      }
      return told;
    }

    function complain(message) {
      let placed = false;
      for (const [name, one] of fields) {
        const flag = one.option.flag.split("/")[0];
        const mine = message && (message.startsWith(`${flag}:`) || message.startsWith(`${flag} `) || message.startsWith(`${name}:`));
        one.row.classList.toggle("bad", Boolean(mine));
        one.wrong.hidden = !mine;
        setText(one.wrong, mine ? message : "");
        placed ||= Boolean(mine);
      }
      return placed;
    }

    let asked = 0;
    let timer = null;
    function check() {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        asked += 1;
        const mine = asked;
        try {
          const told = await post("api/estimate", { command: form.command, values: values() });
          if (mine !== asked) return;
          if (told.error) throw new Error(told.error);
          complain("");
          setText(shell, told.shell);
          if (told.bytes) {
            const share = told.bytes / told.machine_bytes;
            setText(memory, `Needs about ${bytes(told.bytes)} of this machine's ${bytes(told.machine_bytes)} memory: ` +
              `${count(told.particles)} particles of ${told.box} pixels, ${digits(told.pixel_angstrom)} Å each.${share > 0.75 ? " That is more than it should take." : ""}`);
          } else setText(memory, " ");
          start.disabled = false;
        } catch (error) {
          if (mine !== asked) return;
          const missing = error.message.endsWith("a value is needed");
          if (missing) complain("");
          if (missing || !complain(error.message)) setText(memory, error.message);
          setText(shell, " ");
          start.disabled = true;
        }
      }, 250);
    }

    element.addEventListener("input", check);
    element.addEventListener("submit", async (event) => {
      event.preventDefault();
      start.disabled = true;
      try {
        const told = await post("api/start", { command: form.command, values: values() });
        toast(`${told.command} starts in ${told.out || "the folder"}`);
        go("jobs");
      } catch (error) {
        if (!complain(error.message)) toast(error.message);
        start.disabled = false;
      }
    });
    check();
  }
  return {};
}
