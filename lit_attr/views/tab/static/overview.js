// A run as a whole: answers, role × layer map, curves, agreement, settings.

import { get } from "./api.js";
import { figure } from "./charts.js";
import { h, interval, note, number, percent, select } from "./dom.js";
import { MEASURES, mapTable, measuresOf, roleMap } from "./maps.js";
import { change } from "./state.js";

// Okabe and Ito's colours, which colour-blind readers distinguish.
const CURVES = ["#999999", "#56b4e9", "#e69f00", "#f0a0c8", "#d55e00", "#009e73", "#b09c00", "#0072b2"];

export async function overviewView(state, run) {
  if (!run.contrasts) return note("No fact is done yet. Refresh the page once the run has written its first batch.", "empty");
  const found = await get("overview", { run: state.run, component: state.component });
  const { summary } = found;
  const group = state.facts === "known" && summary.known ? "known_profile" : "profile";
  const profile = summary[group];
  const measures = measuresOf(profile);
  const measure = measures.includes(state.measure) ? state.measure : measures[0];
  return h(
    "section",
    { class: "overview" },
    answers(found, run),
    h(
      "div",
      { class: "bar" },
      h("h2", {}, "Token roles by layer"),
      measures.length > 1 ? select("measure", measures.map((name) => [name, MEASURES[name][0]]), measure, (value) => change({ measure: value })) : null,
      select("facts", [["", `all (${summary.contrasts.toLocaleString("en")})`], ...(summary.known ? [["known", `known (${summary.known.toLocaleString("en")})`]] : [])], state.facts ?? "", (value) => change({ facts: value })),
    ),
    map(profile, measure, run),
    mapTable(profile, measure, "map"),
    h("h2", {}, "Curves by layer"),
    curves(profile, measure),
    summary.agreement ? agreement(found) : note("No exact effects: scores are estimates. Run again with --model.verify 64 to learn how far to trust them.", "empty"),
    settings(found),
  );
}

function answers({ summary, verdict, promise }, run) {
  const adaptive = summary.adaptive;
  const share = adaptive?.exact_share ?? null;
  const items = [
    ["contrasts", summary.contrasts.toLocaleString("en"), summary.rejected ? `${summary.rejected.toLocaleString("en")} rows refused` : "no row refused"],
    ["accuracy", percent(summary.contrast_accuracy), "true answer above the false one"],
    ["known", percent(summary.known_share), `${summary.known.toLocaleString("en")} with the true answer on top`],
    ["median logit difference", number(summary.median_logit_diff, 2, true), ""],
    [
      "computed exactly",
      share === null ? `${run.checked.toLocaleString("en")} facts` : `${percent(share)} of cells`,
      share === null ? `of ${summary.contrasts.toLocaleString("en")}; the rest is estimated` : `${number(adaptive.exact_cost)} gradient passes a fact, beside the estimate`,
    ],
  ];
  return h(
    "div",
    {},
    h("dl", { class: "numbers", id: "answers" }, items.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "soft" }, more)))),
    verdict ? h("p", { id: "verdict" }, verdict) : null,
    promise ? h("p", { id: "promise" }, promise) : null,
  );
}

function map(profile, measure, run) {
  const click = (layer, role) => change({ view: "facts", layer, role, sort: "cell", order: "desc", page: null, id: null });
  const isScore = measure === "mean_score";
  const notes = [
    measure === "mean_magnitude" ? "" : `Dots: the 95% interval excludes 0${isScore ? " (of the mean score, not of the exact effect)" : ""}.`,
    "Position 0, most often an attention sink, does not set the scale.",
    "A click on a cell lists the facts that contribute most.",
  ];
  return h("div", {}, roleMap({ name: `roles ${measure}`, profile, measure, colours: run.colours, click }), h("p", { class: "soft" }, notes.filter((each) => each).join(" ")));
}

function curves(profile, measure) {
  const [title, low, high] = MEASURES[measure];
  // Position 0 is many times as large as the rest; it can be chosen in the legend.
  const traces = profile.roles.flatMap((role, at) => {
    const y = profile[measure].map((row) => row[at]);
    if (y.every((value) => value === null)) return [];
    const ends = [profile[low], profile[high]].map((rows) => rows.map((row) => row[at]));
    const shared = { x: profile.layers, type: "scatter", mode: "lines", legendgroup: role, visible: at ? true : "legendonly" };
    const bound = (values, fill) => ({ ...shared, y: values, fill, line: { width: 0, color: CURVES[at] }, fillcolor: `${CURVES[at]}33`, showlegend: false, hoverinfo: "skip" });
    const line = { ...shared, y, name: role, line: { color: CURVES[at], width: 2 }, hovertemplate: `${role}, layer %{x}: %{y:+.4f}<extra></extra>` };
    return [bound(ends[0], "none"), bound(ends[1], "tonexty"), line];
  });
  const layout = { xaxis: { title: { text: "layer" } }, yaxis: { title: { text: `${title}, logits` }, automargin: true }, hovermode: "closest", legend: { x: 1.01 } };
  const table = () => [
    ["role", "layer", measure, "low", "high"],
    ...profile.roles.flatMap((role, at) => profile.layers.map((layer, place) => [role, layer, profile[measure][place][at], profile[low][place][at], profile[high][place][at]])),
  ];
  const missing = profile.roles.filter((_, at) => profile[measure].every((row) => row[at] === null));
  const notes = [
    "Bands: 95% intervals. A click in the legend shows or hides a role, a double click shows it alone.",
    missing.length ? `Too few facts with exact effects: ${missing.join(", ")}.` : "",
  ];
  return h("div", {}, figure({ name: `curves ${measure}`, height: 340, traces, layout, table }), h("p", { class: "soft" }, notes.filter((each) => each).join(" ")));
}

// How many of the largest cells are compared differs between the parts, and is in the name.
function overlap(part) {
  const name = Object.keys(part).find((each) => each.endsWith("_overlap"));
  return name ? part[name] : null;
}

function agreement({ summary }) {
  const found = summary.agreement;
  const names = Object.keys(found.by_layer);
  const r = names.map((name) => found.by_layer[name].pearson);
  const ends = names.map((name) => found.by_layer[name].intervals.pearson);
  const side = (at) => ends.map((pair, place) => (pair && r[place] !== null ? Math.abs(pair[at] - r[place]) : 0));
  const traces = [
    {
      type: "scatter",
      mode: "markers+lines",
      x: names.map(Number),
      y: r,
      customdata: ends.map((pair) => interval(pair, 2)),
      error_y: { type: "data", symmetric: false, array: side(1), arrayminus: side(0), thickness: 1, width: 2 },
      line: { color: "#0072b2", width: 1 },
      marker: { size: 6, color: "#0072b2" },
      hovertemplate: "layer %{x}: r = %{y:.3f}<br>95% interval %{customdata}<extra></extra>",
      showlegend: false,
    },
  ];
  const layout = { xaxis: { title: { text: "layer" }, range: [Math.min(...names) - 0.5, Math.max(...names) + 0.5], zeroline: false }, yaxis: { title: { text: "r with exact effects" }, range: [Math.min(0, ...r.map((value) => value ?? 0)) - 0.05, 1.05] } };
  const table = () => [["layer", "pearson", "low", "high"], ...names.map((name, at) => [name, r[at], ...(ends[at] ?? ["", ""])])];
  const parts = [["all cells", found], ["without position 0", found.without_position_0], ...(found.estimated_cells ? [["estimated cells alone", found.estimated_cells]] : []), ...Object.entries(found.by_role)];
  const rows = parts.map(([name, part]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { class: "right" }, number(part.pearson)),
      h("td", {}, part.pearson === null ? "" : interval(part.intervals.pearson, 2)),
      [part.spearman, part.same_sign, overlap(part)].map((value) => h("td", { class: "right" }, number(value))),
    ),
  );
  const head = ["cells", "r", "95% interval", "rank correlation", "same sign", "largest cells found"].map((name, at) => h("th", { scope: "col", class: at && at !== 2 ? "right" : "" }, name));
  return h(
    "div",
    {},
    h("h2", {}, `Agreement with exact effects of ${found.contrasts.toLocaleString("en")} contrasts`),
    figure({ name: "agreement", height: 280, traces, layout, table }),
    h("table", { class: "list narrow", id: "agreement" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)),
  );
}

function settings(found) {
  const written = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const groups = [...Object.entries(found.settings), ["versions", found.libraries]];
  return h(
    "details",
    { id: "settings" },
    h("summary", {}, "Settings that change a number"),
    groups.map(([name, values]) =>
      h("div", {}, h("h3", {}, name), h("table", { class: "list narrow" }, h("tbody", {}, Object.entries(values).map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, key), h("td", {}, h("bdi", {}, written(value)))))))),
    ),
    found.created ? h("p", { class: "soft" }, `Begun ${found.created}`) : null,
  );
}
