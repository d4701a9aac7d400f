// Before anything is drawn: the theme that was chosen, or else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("halfmap-theme");
  } catch {
    // storage is refused in a sandbox: the system's theme then
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
