// Pictures drawn by Plotly, with buttons that save them and their numbers.

import { loadPlotly } from "./api.js";
import { h, shortened, visible } from "./dom.js";

const GAP = 0.35; // of a row, below the row of position 0
const LABEL = 18; // characters
const EMPTY = "#e2e2e2"; // cells without a value, and the lines between cells, as in the PNG files

// Plotly reads tags and entities in labels; text from data is to be shown as it is written.
export function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
}

export function tokenLabels(tokens) {
  return tokens.map((token) => plain(shortened(visible(token), LABEL)));
}

// Rows from the top, the first, position 0, apart from the others.
export function rowPlaces(count) {
  return Array.from({ length: count }, (_, row) => (row ? row + GAP : 0));
}

// The heatmap of one panel: a trace for position 0 and one for the rest, on one scale.
export function heatmap(panel) {
  const { values, layers, scale, colours, axis = "", texts, isMagnitude = false, showScale = false } = panel;
  const places = rowPlaces(values.length);
  const trace = (from, to, withScale) => ({
    type: "heatmap",
    z: values.slice(from, to),
    x: layers.map((_, place) => place),
    y: places.slice(from, to),
    dy: 1,
    text: texts.slice(from, to),
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: true,
    zmin: isMagnitude ? 0 : -scale,
    zmax: scale,
    colorscale: isMagnitude ? magnitudeScale(colours) : colours,
    xaxis: `x${axis}`,
    yaxis: "y",
    xgap: layers.length > 60 ? 0 : 1,
    ygap: 1,
    showscale: withScale,
    colorbar: { title: { text: "logits", side: "top" }, thickness: 12, len: 1, outlinewidth: 0 },
  });
  const rest = values.length > 1 ? [trace(1, values.length, showScale)] : [];
  return [trace(0, 1, showScale && !rest.length), ...rest];
}

// Dots on cells: intervals that exclude 0, or cells that are exact.
export function dots(marked, axis = "") {
  const places = rowPlaces(marked.length);
  const cells = marked.flatMap((row, at) => row.map((is, layer) => (is ? [layer, places[at]] : null)));
  const found = cells.filter((cell) => cell);
  return {
    type: "scatter",
    mode: "markers",
    x: found.map(([layer]) => layer),
    y: found.map(([, place]) => place),
    marker: { size: 4, color: "#1f1f1f", line: { color: "#ffffff", width: 1 } },
    hoverinfo: "skip",
    showlegend: false,
    xaxis: `x${axis}`,
    yaxis: "y",
  };
}

export function layerAxis(layers, extra = {}) {
  const step = [1, 2, 4, 5, 8, 10, 16, 20].find((each) => layers.length / each <= 16) ?? 32;
  const shown = layers.map((_, place) => place).filter((place) => place % step === 0);
  return {
    tickvals: shown,
    ticktext: shown.map((place) => String(layers[place])),
    title: { text: "layer", standoff: 6 },
    zeroline: false,
    showgrid: false,
    range: [-0.5, layers.length - 0.5],
    ...extra,
  };
}

export function rowAxis(labels) {
  const places = rowPlaces(labels.length);
  return {
    tickvals: places,
    ticktext: labels,
    range: [places[places.length - 1] + 0.5, -0.5],
    zeroline: false,
    showgrid: false,
    ticks: "",
    automargin: true,
  };
}

export function panelTitle(text, domain) {
  return {
    text: plain(text),
    x: domain[0],
    y: 1,
    xref: "paper",
    yref: "paper",
    xanchor: "left",
    yanchor: "bottom",
    yshift: 6,
    showarrow: false,
    font: { size: 13 },
  };
}

// The ground of maps: grey where there is no value, and the page between position 0 and the other rows.
export function mapGround() {
  const gap = { type: "rect", xref: "paper", x0: 0, x1: 1, y0: 0.5, y1: 0.5 + GAP, layer: "below", line: { width: 0 } };
  return { plot_bgcolor: EMPTY, shapes: [{ ...gap, fillcolor: "--page" }] };
}

// Draws a figure into a frame of its own. `table` gives the rows of its CSV; `click` gets the clicked point.
export function figure({ name, height, traces, layout, table, click = null, label }) {
  const area = h("div", { class: "plot", style: `height:${height}px`, role: "img", "aria-label": label ?? name });
  const save = (format) => async () => {
    const Plotly = await loadPlotly();
    const content = await Plotly.toImage(area, { format, width: area.clientWidth, height, scale: 2 });
    download(content, `${name}.${format}`);
  };
  const buttons = h(
    "div",
    { class: "downloads" },
    ["png", "svg"].map((format) =>
      h("button", { type: "button", class: "small", onclick: save(format) }, format.toUpperCase()),
    ),
    h("button", { type: "button", class: "small", onclick: () => downloadCsv(`${name}.csv`, table()) }, "CSV"),
  );
  const frame = h("figure", { "data-name": name }, area, buttons);
  const draw = async () => {
    const Plotly = await loadPlotly();
    if (!area.isConnected) return;
    await Plotly.react(area, traces, themed(layout), { responsive: true, displayModeBar: false });
    area.dataset.drawn = "yes";
    if (click && !area.dataset.clicks) {
      area.dataset.clicks = "yes";
      area.on("plotly_click", (event) => click(event.points[0]));
    }
  };
  frame.redraw = draw;
  // Plotly measures its area, which must be on the page.
  requestAnimationFrame(() => draw().catch((error) => area.replaceChildren(String(error.message))));
  return frame;
}

export function redrawAll() {
  for (const frame of document.querySelectorAll("figure")) frame.redraw?.();
}

export function downloadCsv(name, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const content = rows.map((row) => row.map(cell).join(",")).join("\r\n");
  const url = URL.createObjectURL(new Blob([content, "\r\n"], { type: "text/csv" }));
  download(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function download(url, name) {
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function magnitudeScale(colours) {
  return colours.filter(([place]) => place >= 0.5).map(([place, colour]) => [2 * place - 1, colour]);
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axes = Object.fromEntries(
    Object.entries(layout)
      .filter(([name]) => /^[xy]axis\d*$/.test(name))
      .map(([name, axis]) => [
        name,
        { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--soft"), ...axis },
      ]),
  );
  return {
    paper_bgcolor: colour("--page"),
    plot_bgcolor: colour("--page"),
    font: { family: "Roboto, system-ui, sans-serif", size: 12, color: colour("--ink") },
    margin: { l: 40, r: 20, t: 34, b: 44 },
    hoverlabel: {
      align: "left",
      bgcolor: colour("--panel"),
      bordercolor: colour("--soft"),
      font: { color: colour("--ink"), size: 12 },
    },
    dragmode: false,
    ...layout,
    ...axes,
    shapes: (layout.shapes ?? []).map((shape) => ({ ...shape, fillcolor: colour(shape.fillcolor) })),
  };
}
