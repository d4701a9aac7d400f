// Single particles: a table of them, and one with all that is known of it.
import { getJson } from "./api.js";
import { h } from "./dom.js";

export function particlePage(main, go, query) {
  main.replaceChildren(h("h1", {}, `Particles of ${query.id}`));
  return { getJson, go };
}
