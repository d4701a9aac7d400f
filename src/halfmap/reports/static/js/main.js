// The frame around the pages: which one is shown, keys, the theme, and whether the line is open.
import { getJson } from "./api.js";
import { compare } from "./compare.js";
import { dashboard } from "./dashboard.js";
import { h, setText } from "./dom.js";
import { formPage } from "./forms.js";
import { jobPage } from "./jobpage.js";
import { connect, isLive, onChange } from "./live.js";
import { particlePage } from "./particles.js";

const PAGES = { jobs: dashboard, job: jobPage, new: formPage, compare, particles: particlePage };
const KEYS = [
  ["j k, arrows", "next and previous job, class or particle"],
  ["Enter", "open it"],
  ["Space", "choose it (two jobs can be compared, classes selected)"],
  ["/", "filter"],
  ["n", "new job"],
  ["g", "all jobs"],
  ["t", "light or dark"],
  ["arrows on a map", "turn it; + and - zoom, r resets"],
  ["?", "these keys"],
];

const main = document.getElementById("main");
let page = null;

function go(name, query = {}) {
  const text = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== undefined && v !== null)).toString();
  location.hash = `#/${name}${text ? `?${text}` : ""}`;
}

function where() {
  const [name, text] = location.hash.replace(/^#\/?/, "").split("?");
  return [name || "jobs", Object.fromEntries(new URLSearchParams(text || ""))];
}

function show() {
  const [name, query] = where();
  page?.leave?.();
  const make = PAGES[name] || dashboard;
  document.title = query.id ? `${query.id} · halfmap` : "halfmap";
  for (const link of document.querySelectorAll("#top nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren();
  page = make(main, go, query) || {};
  window.scrollTo(0, 0);
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("halfmap-theme", root.dataset.theme);
  } catch {
    // not kept, then
  }
  document.dispatchEvent(new Event("halfmap-theme"));
}

const keys = h(
  "dialog",
  { "aria-label": "Keys" },
  h("h2", {}, "Keys"),
  h("table", { class: "numbers" }, h("tbody", {}, KEYS.map(([key, text]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, text))))),
  h("form", { method: "dialog" }, h("button", {}, "Close")),
);

const live = h("span", { class: "live", role: "status" }, "connecting");
const place = h("span", { class: "place" });
const link = (name, text, kind) => h("a", { href: `#/${name}`, "data-page": name, class: kind }, text);
document.getElementById("top").append(
  h("a", { class: "brand", href: "#/" }, h("img", { src: "static/icon.svg", alt: "" }), "halfmap"),
  h("nav", { "aria-label": "Pages" }, link("jobs", "Jobs"), link("new", "New job", "changes"), link("compare", "Compare")),
  place,
  h("span", { class: "grow" }),
  live,
  h("button", { class: "plain", onclick: switchTheme, title: "Light or dark (t)" }, "Theme"),
  h("button", { class: "plain", onclick: () => keys.showModal(), title: "Keys (?)" }, "Keys"),
);
document.body.append(keys);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  if (page?.key?.(event)) {
    event.preventDefault();
    return;
  }
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
  if (typing) return;
  if (event.key === "n") go("new");
  else if (event.key === "g") go("jobs");
  else if (event.key === "t") switchTheme();
  else if (event.key === "?") keys.showModal();
  else return;
  event.preventDefault();
});

onChange(() => {
  live.className = `live ${isLive() ? "on" : "off"}`;
  setText(live, isLive() ? "live" : "no connection");
});
addEventListener("hashchange", show);
getJson("api/rows").then((told) => {
  setText(place, told.root);
  place.title = told.root;
  document.documentElement.classList.toggle("read-only", told.read_only);
}).catch(() => {});
connect();
show();
