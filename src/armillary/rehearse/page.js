"use strict";
const drawn = JSON.parse(document.getElementById("events").textContent);
const canvas = document.getElementById("gantt");
const said = document.getElementById("said");
const style = getComputedStyle(document.documentElement);
const LEFT = 150, TALL = 20, THIN = 9, FOOT = 24;
let from = 0, until = drawn.end || 1;

const rows = drawn.rows.map(([coordinate, lane, rank]) => ({ coordinate, lane, rank }));
let height = 0;
rows.forEach((row, index) => {
  if (row.lane === "compute" && index) height += 8;
  row.top = height;
  row.height = row.lane === "compute" ? TALL : THIN;
  height += row.height + 2;
});
const byRow = rows.map(() => []);
drawn.events.forEach((event) => byRow[event[0]].push(event));
byRow.forEach((line) => line.sort((a, b) => a[1] - b[1]));

function seconds(value) {
  const parts = [[1e-3, 1e6, "µs"], [1, 1e3, "ms"]];
  for (const [limit, scale, unit] of parts) {
    if (Math.abs(value) < limit) return `${(value * scale).toPrecision(3)} ${unit}`;
  }
  if (Math.abs(value) < 60) return `${value.toPrecision(4)} s`;
  return `${Math.floor(value / 60)} min ${(value % 60).toFixed(1)} s`;
}

function across(time, width) {
  return LEFT + ((time - from) / (until - from)) * (width - LEFT);
}

function first(line, time) {
  let low = 0, high = line.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (line[middle][2] < time) low = middle + 1; else high = middle;
  }
  return low;
}

function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = width * ratio;
  canvas.height = (height + FOOT) * ratio;
  canvas.style.height = `${height + FOOT}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height + FOOT);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const colours = drawn.classes.map(colour);
  pen.font = "11px system-ui, sans-serif";
  rows.forEach((row, index) => {
    pen.fillStyle = row.lane === "compute" ? colour("bubble") : colour("grid");
    pen.fillRect(LEFT, row.top, width - LEFT, row.height);
    const line = byRow[index];
    for (let place = first(line, from); place < line.length && line[place][1] <= until; place++) {
      const [, start, end, , kind, micro] = line[place];
      const x = Math.max(across(start, width), LEFT);
      const w = Math.max(across(end, width) - x, 0.6);
      pen.fillStyle = colours[kind];
      pen.fillRect(x, row.top, w > 2 ? w - 0.5 : w, row.height);
      if (w > 22 && row.lane === "compute" && micro >= 0) {
        pen.fillStyle = "#fff";
        pen.fillText(String(micro), x + 4, row.top + 14);
      }
    }
    pen.fillStyle = colour("muted");
    pen.clearRect(0, row.top, LEFT - 4, row.height);
    const words = row.lane === "compute" ? `stage ${row.coordinate} · rank ${row.rank}` : row.lane;
    if (row.lane === "compute") pen.fillText(words, 0, row.top + 14);
    else { pen.font = "9px system-ui, sans-serif"; pen.fillText(words, 60, row.top + 8); }
    pen.font = "11px system-ui, sans-serif";
  });
  pen.fillStyle = colour("muted");
  for (let mark = 0; mark <= 5; mark++) {
    const time = from + ((until - from) * mark) / 5;
    pen.textAlign = mark === 5 ? "right" : mark ? "center" : "left";
    pen.fillText(seconds(time), across(time, width), height + 16);
  }
  pen.textAlign = "left";
}

function zoom(factor, share) {
  const middle = from + (until - from) * share;
  const span = Math.min(Math.max((until - from) * factor, drawn.end * 1e-6), drawn.end);
  from = Math.min(Math.max(middle - span * share, 0), drawn.end - span);
  until = from + span;
  draw();
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const width = canvas.clientWidth;
  const share = Math.min(Math.max((event.offsetX - LEFT) / (width - LEFT), 0), 1);
  zoom(event.deltaY > 0 ? 1.25 : 0.8, share);
}, { passive: false });
let held = null;
canvas.addEventListener("pointerdown", (event) => {
  held = { x: event.offsetX, from, until };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointermove", (event) => {
  const width = canvas.clientWidth;
  if (held) {
    const span = held.until - held.from;
    const moved = ((held.x - event.offsetX) / (width - LEFT)) * span;
    from = Math.min(Math.max(held.from + moved, 0), Math.max(drawn.end - span, 0));
    until = from + span;
    draw();
    return;
  }
  const index = rows.findIndex((r) => event.offsetY >= r.top && event.offsetY < r.top + r.height);
  if (index < 0 || event.offsetX < LEFT) return;
  const time = from + ((event.offsetX - LEFT) / (width - LEFT)) * (until - from);
  const line = byRow[index], found = line[first(line, time)];
  const row = rows[index];
  const where = `stage ${row.coordinate}, rank ${row.rank}, ${row.lane}`;
  if (found && found[1] <= time) {
    const micro = found[5] >= 0 ? `, micro batch ${found[5]}` : "";
    const long = seconds(found[2] - found[1]);
    said.textContent = `${where}: ${drawn.names[found[3]]}${micro}, ${long} from ${seconds(found[1])}`;
  } else {
    said.textContent = `${where}: nothing at ${seconds(time)}`;
  }
});
document.getElementById("nearer").addEventListener("click", () => zoom(0.5, 0.5));
document.getElementById("farther").addEventListener("click", () => zoom(2, 0.5));
document.getElementById("all").addEventListener("click", () => {
  from = 0; until = drawn.end || 1; draw();
});
window.addEventListener("resize", draw);
draw();

const choices = JSON.parse(document.getElementById("choices").textContent);
const at = (name) => document.getElementById(name);
function choose() {
  const network = Number(at("network").value), jitter = Number(at("jitter").value);
  const placement = Number(at("placement").value);
  at("network-said").textContent = choices.networks[network];
  at("jitter-said").textContent = choices.jitters[jitter];
  const step = choices.steps[placement][network] + choices.more * choices.jitters[jitter];
  at("then").textContent = `${seconds(step)} a step`;
  const change = 100 * (step / choices.own - 1);
  at("change").textContent = Math.abs(change) < 0.05 ? "as rehearsed"
    : `${Math.abs(change).toFixed(1)} % ${change < 0 ? "less" : "more"} than rehearsed`;
}
["network", "jitter", "placement"].forEach((name) => at(name).addEventListener("input", choose));
choose();
