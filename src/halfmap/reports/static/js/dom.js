// Elements, numbers with their units, and small things that all pages share. What comes from files
// is only ever put in as text.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function angstrom(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  return `${value.toFixed(value >= 5 ? 1 : 2)} Å`;
}

export function seconds(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  if (value < 10) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  const pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  return hours ? `${hours} h ${pad(minutes)} min` : `${minutes} min ${pad(whole % 60)} s`;
}

export function bytes(value) {
  if (typeof value !== "number" || !(value >= 0)) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let k = 0;
  while (value >= 1000 && k < units.length - 1) {
    value /= 1000;
    k += 1;
  }
  return `${value.toFixed(k === 0 || value >= 100 ? 0 : 1)} ${units[k]}`;
}

export function count(value) {
  return typeof value === "number" ? value.toLocaleString("en-US") : "";
}

export function when(text) {
  const date = new Date(text || "");
  if (Number.isNaN(date.getTime())) return "";
  const far = date.getFullYear() !== new Date().getFullYear();
  const day = { day: "numeric", month: "short", year: far ? "numeric" : undefined };
  const time = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return `${date.toLocaleDateString(undefined, day)}, ${date.toLocaleTimeString(undefined, time)}`;
}

// as many digits as say something
export function digits(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export function words(name) {
  return name.replaceAll("_", " ");
}

// an option's name without its unit, which stands beside the value
export function optionName(name) {
  return words(name.replace(/_(angstrom2?|px|deg|kv|mm|mrad)$/, ""));
}

export function inAngstrom(text) {
  return (text || "").replace(/\bA\b/g, "Å");
}

// in words that a command told
export function withAngstrom(text) {
  return (text || "").replace(/(\d) A\b/g, "$1 Å");
}

export function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function save(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

export function csvOf(columns) {
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const cell = (v) => (v === null || v === undefined ? "" : quote(String(v)));
  const rows = Math.max(...columns.map((c) => c.values.length));
  const lines = [columns.map((c) => cell(c.name)).join(",")];
  for (let r = 0; r < rows; r += 1) lines.push(columns.map((c) => cell(c.values[r])).join(","));
  return `${lines.join("\n")}\n`;
}

export function onTheme(redraw) {
  document.addEventListener("halfmap-theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

export function toast(text) {
  const shown = h("div", { class: "toast" }, text);
  const host = document.getElementById("toasts");
  if (!host) return;
  host.append(shown);
  setTimeout(() => shown.remove(), 8000);
}
