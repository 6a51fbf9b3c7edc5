const facts = JSON.parse(document.getElementById("facts").textContent);
const pick = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const maps = facts.images.map(image => bytes(image.attention));
const [layers, heads, rows, columns] = facts.shape;
function draw() {
  const i = +pick("image").value, layer = +pick("layer").value, head = +pick("head").value;
  pick("photo").src = facts.images[i].photo;
  pick("photo").alt = facts.images[i].name;
  const size = rows * columns, start = (layer * heads + head) * size;
  const canvas = pick("map"), context = canvas.getContext("2d");
  canvas.width = columns; canvas.height = rows;
  const pixels = context.createImageData(columns, rows);
  for (let p = 0; p < size; p++) {
    const v = maps[i][start + p] / 255;
    const blue = 0.25 + 0.5 * Math.abs(v - 0.4);
    pixels.data.set([255 * Math.min(1, 1.6 * v), 255 * v * v, 255 * blue, 255], 4 * p);
  }
  context.putImageData(pixels, 0, 0);
  pick("said").textContent = `${facts.images[i].name}, layer ${layer}, head ${head}: mean distance `
    + `${facts.distance[layer][head].toFixed(1)} pixels`;
}
for (const id of ["image", "layer", "head"]) pick(id).addEventListener("input", draw);
draw();
