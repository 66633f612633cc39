// Role × layer maps: position 0 apart, dots where the interval excludes 0.

import { dots, figure, heatmap, layerAxis, mapGround, plain, rowAxis } from "./charts.js";
import { h, score } from "./dom.js";

export const MEASURES = {
  mean_effect: ["mean exact effect", "interval_low", "interval_high"],
  mean_magnitude: ["mean |exact effect|", "magnitude_low", "magnitude_high"],
  mean_score: ["mean score (estimate)", "score_low", "score_high"],
};
const ROW = 34; // pixels

export function hasEffects(profile) {
  return profile.mean_effect.some((row) => row.some((value) => value !== null));
}

export function measuresOf(profile) {
  return hasEffects(profile) ? Object.keys(MEASURES) : ["mean_score"];
}

export const transposed = (values_LR, roles) => roles.map((_, role) => values_LR.map((row) => row[role]));

// The largest magnitude below position 0, which sets the scale only where nothing else is there.
export function scaleOf(...maps) {
  const largest = (rows) => Math.max(0, ...rows.flat().map((value) => Math.abs(value ?? 0)));
  return Math.max(...maps.map((rows) => largest(rows.slice(1)))) || Math.max(...maps.map(largest)) || 1;
}

export function roleLabels(profile) {
  return profile.roles.map((role, at) => `${plain(role)} <span style="font-size:10px">n=${profile.contrasts[at].toLocaleString("en")}</span>`);
}

export function hoverText(profile, measure, layer, role) {
  const [title, low, high] = MEASURES[measure];
  const mean = profile[measure][layer][role];
  if (mean === null) return `<b>${plain(profile.roles[role])}</b>, layer ${profile.layers[layer]}<br>too few facts with exact effects`;
  const ends = profile[low][layer][role] === null ? null : [profile[low][layer][role], profile[high][layer][role]];
  return [
    `<b>${plain(profile.roles[role])}</b>, layer ${profile.layers[layer]}`,
    `${title} ${score(mean)}`,
    ends ? `95% interval ${score(ends[0])} to ${score(ends[1])}` : "no interval",
    `${profile.facts[role].toLocaleString("en")} facts, ${profile.sampled[role].toLocaleString("en")} with exact effects`,
  ].join("<br>");
}

export function roleMap({ name, profile, measure, colours, click }) {
  const [, low, high] = MEASURES[measure];
  const { layers, roles } = profile;
  const isMagnitude = measure === "mean_magnitude";
  const values = transposed(profile[measure], roles);
  const texts = roles.map((_, role) => layers.map((__, layer) => hoverText(profile, measure, layer, role)));
  const traces = heatmap({ values, layers, scale: scaleOf(values), colours, texts, isMagnitude, showScale: true });
  if (!isMagnitude) {
    const marked = transposed(profile[low], roles).map((row, role) =>
      row.map((value, layer) => value !== null && (value > 0 || profile[high][layer][role] < 0)),
    );
    traces.push(dots(marked));
  }
  const layout = { ...mapGround(), xaxis: layerAxis(layers), yaxis: rowAxis(roleLabels(profile)) };
  const table = () => [
    ["role", "layer", "facts", "with_exact_effects", measure, "low", "high"],
    ...roles.flatMap((role, at) =>
      layers.map((layer, place) => [role, layer, profile.facts[at], profile.sampled[at], profile[measure][place][at], profile[low][place][at], profile[high][place][at]]),
    ),
  ];
  const chosen = (point) => {
    const role = point.y < 0.5 ? 0 : Math.round(point.y - 0.35);
    click(layers[Math.round(point.x)], roles[role]);
  };
  const height = (roles.length + 0.35) * ROW + 84;
  return figure({ name, height, traces, layout, table, click: chosen, label: "Role by layer map" });
}

// What assistive programs and tests read: the same numbers as text.
export function mapTable(profile, measure, id) {
  const head = h("tr", {}, h("th", { scope: "col" }, "role"), profile.layers.map((layer) => h("th", { scope: "col" }, String(layer))));
  const rows = profile.roles.map((role, at) =>
    h("tr", {}, h("th", { scope: "row" }, role), profile[measure].map((row) => h("td", { class: "right" }, row[at] === null ? "–" : score(row[at])))),
  );
  return h("details", {}, h("summary", {}, "The map as a table"), h("div", { class: "wide" }, h("table", { class: "list", id }, h("thead", {}, head), h("tbody", {}, rows))));
}
