// A particle's micrograph, small, with the boxes of its particles; a box that is clicked is shown.
import { count, digits, h } from "./dom.js";

const MINE = "#e69f00";
const OTHERS = "rgba(86, 180, 233, 0.75)";

function drawBoxes(canvas, image, found) {
  const ctx = canvas.getContext("2d");
  const scale = canvas.width / found.width;
  ctx.drawImage(image, 0, 0, canvas.width, canvas.height);
  const side = found.side * scale;
  found.boxes.forEach(([, x, y], k) => {
    const mine = k === 0;
    ctx.strokeStyle = mine ? MINE : OTHERS;
    ctx.lineWidth = mine ? 3 : 1;
    ctx.strokeRect(x * scale - side / 2, y * scale - side / 2, side, side);
  });
  const [, x, y] = found.boxes[0] || [];
  if (x === undefined) return;
  ctx.strokeStyle = MINE; // drawn last, over its neighbours
  ctx.lineWidth = 3;
  ctx.strokeRect(x * scale - side / 2, y * scale - side / 2, side, side);
}

// The particle in whose box a point of the micrograph lies, the nearest centre first.
function particleAt(found, x, y) {
  const near = found.boxes
    .map(([index, a, b]) => [Math.max(Math.abs(a - x), Math.abs(b - y)), index])
    .filter(([away]) => away < found.side / 2)
    .sort((a, b) => a[0] - b[0]);
  return near.length ? near[0][1] : null;
}

export function micrographView(found, goTo) {
  const head = h("h2", {}, found.name ? `Micrograph ${found.name}` : "Micrograph");
  head.style.overflowWrap = "anywhere";
  const note = found.note ? h("p", { class: "quiet" }, found.note) : "";
  if (!found.picture) return [head, note];
  const image = new Image();
  const canvas = h("canvas", { role: "img", class: "micrograph", width: 720, height: Math.round((720 * found.height) / found.width) });
  canvas.setAttribute("aria-label", "The micrograph, this particle's box marked");
  const boxes = found.boxes ? found : { ...found, boxes: [], side: 0 };
  image.onload = () => {
    drawBoxes(canvas, image, boxes);
    canvas.dataset.drawn = String(boxes.boxes.length);
  };
  image.src = found.picture;
  canvas.addEventListener("click", (event) => {
    const area = canvas.getBoundingClientRect();
    const index = particleAt(boxes, ((event.clientX - area.left) / area.width) * found.width, ((event.clientY - area.top) / area.height) * found.height);
    if (index !== null && index !== boxes.boxes[0][0]) goTo(index);
  });
  const size = `${count(found.width)} × ${count(found.height)} pixels of ${digits(found.pixel_angstrom)} Å`;
  const told = found.boxes ? `; ${count(found.of)} particles of this file, this one in the thick box; click another to see it` : "";
  return [head, note, canvas, h("p", { class: "small quiet" }, `${size}${told}`)];
}
