"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const style = () => getComputedStyle(document.documentElement);

// "@first" is the colour --first of the page; "@fill2" is wheel 2, a little transparent.
function resolve(value, colours) {
  if (typeof value === "string" && value.startsWith("@")) {
    const [, word, index] = value.match(/^@([a-z]+)(\d*)$/) || [];
    if (word === "fill") return colours.getPropertyValue(`--wheel${index % 7}`).trim() + "d0";
    if (word === "wheel") return colours.getPropertyValue(`--wheel${index % 7}`).trim();
    return (word && colours.getPropertyValue(`--${word}`).trim()) || value;
  }
  if (Array.isArray(value)) {
    return typeof value[0] === "number" ? value.slice() : value.map((v) => resolve(v, colours));
  }
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, colours)]));
  }
  return value;
}

function template(colours) {
  const get = (name) => colours.getPropertyValue(`--${name}`).trim();
  const axis = {
    gridcolor: get("grid"), zeroline: false, linecolor: get("line"), ticks: "", automargin: true,
    tickfont: { color: get("muted"), size: 11.5 }, title: { font: { size: 12 }, standoff: 6 },
  };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: get("muted") },
    colorway: [get("first"), get("second"), ...[3, 4, 5, 0, 6].map((i) => get(`wheel${i}`))],
    xaxis: { ...axis, showgrid: false }, yaxis: axis,
    margin: { l: 8, r: 10, t: 16, b: 8, autoexpand: true },
    hovermode: "x unified",
    hoverlabel: { bgcolor: get("card"), bordercolor: get("line"), font: { color: get("ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    annotationdefaults: { font: { color: get("muted"), size: 12 } },
    bargap: 0.3, dragmode: "zoom",
  } };
}

function draw(chart) {
  const colours = style();
  const layout = { ...resolve(chart.layout, colours), template: template(colours), autosize: true };
  const options = { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset" };
  Plotly.react(chart.id, resolve(chart.data, colours), layout, options);
}

// A chart is drawn when it comes near the screen; all are before printing.
const waiting = new Map(charts.map((chart) => [chart.id, chart]));
const drawn = [];
function show(id) {
  const chart = waiting.get(id);
  if (!chart) return;
  waiting.delete(id);
  draw(chart);
  drawn.push(chart);
}
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { show(entry.target.id); watch.unobserve(entry.target); }
}, { rootMargin: "800px" });
for (const chart of charts) watch.observe(document.getElementById(chart.id));
window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(show));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
