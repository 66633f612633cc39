// One fact: its tokens by layers, with exact effects beside the scores where there are any.

import { get } from "./api.js";
import { dots, figure, heatmap, layerAxis, mapGround, panelTitle, plain, rowAxis, tokenLabels } from "./charts.js";
import { h, note, number, percent, probability, score, visible } from "./dom.js";
import { parameters } from "./facts.js";
import { change } from "./state.js";

const ROW = 26; // pixels

export async function factView(state, run) {
  const key = state.id ? { id: state.id, step: state.step } : await firstOf(state);
  if (!key) return note("No fact is among those of the table: clear its filters, or wait for the run's first batch.", "empty");
  const fact = await get("fact", { ...parameters(state), ...key });
  return h("section", { class: "fact" }, walk(fact), heading(fact), numbers(fact), picture(fact, run), neurons(fact));
}

async function firstOf(state) {
  const { rows } = await get("facts", { ...parameters(state), size: 1 });
  return rows.length ? { id: JSON.stringify(rows[0].id), step: rows[0].step } : null;
}

function walk(fact) {
  const { place, total, previous, next } = fact.around;
  const go = (key) => () => key && change({ id: JSON.stringify(key.id), step: key.step || null });
  const button = (text, key, id, title) =>
    h("button", { type: "button", class: "small", id, title, disabled: !key, onclick: go(key) }, text);
  return h(
    "nav",
    { class: "pager", "aria-label": "Facts" },
    h("button", { type: "button", class: "small", onclick: () => change({ view: "facts" }) }, "Table"),
    button("‹ previous", previous, "previous", "Previous fact (←)"),
    button("next ›", next, "next", "Next fact (→)"),
    h("span", {}, place ? `${place.toLocaleString("en")} of ${total.toLocaleString("en")}` : `not among the ${total.toLocaleString("en")} filtered facts`),
    h("span", { class: "soft keys" }, "← → walk through the table · Esc back to it"),
  );
}

export function heading(fact) {
  const [start, stop] = fact.subject_span;
  const tokens = fact.tokens.map((token, at) =>
    h("bdi", { class: at >= start && at < stop ? "token subject" : "token", title: `${at}: ${fact.roles[at]}` }, visible(token)),
  );
  return h(
    "header",
    {},
    h(
      "h2",
      { id: "prompt" },
      h("bdi", {}, fact.prompt),
      h("span", { class: "soft" }, " → "),
      h("bdi", { class: "true" }, fact.target_true.trim()),
      h("span", { class: "soft" }, " / "),
      h("bdi", { class: "false" }, fact.target_false.trim()),
    ),
    h("div", { class: "tokens" }, tokens),
  );
}

function numbers(fact) {
  const checked = fact.effects
    ? fact.is_pilot
      ? "of the pilot: the error model was fitted to them"
      : `error ${percent(fact.error, 0)}, noise below ${fact.resolution.toExponential(1)}`
    : fact.refused
      ? `refused: ${fact.refused}`
      : "not computed for this fact";
  const rows = [
    ["logit difference", number(fact.logit_diff, 2, true), `${fact.logit_diff > 0 ? "true" : "false"} answer preferred`],
    ["logits", `${number(fact.logit_true)} / ${number(fact.logit_false)}`, `of ${visible(fact.true_token)} and ${visible(fact.false_token)}`],
    ["probabilities", `${probability(fact.prob_true)} / ${probability(fact.prob_false)}`, ""],
    ["rank of the true token", fact.rank_true.toLocaleString("en"), fact.rank_true === 0 ? "known" : "not known"],
    ["exact effects", fact.effects ? "yes" : "no", checked],
    ["id", String(fact.id), [fact.relation_id, fact.step ? `step ${fact.step}` : ""].filter((each) => each).join(", ")],
  ];
  return h(
    "dl",
    { class: "numbers", id: "numbers" },
    rows.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "soft" }, h("bdi", {}, more)))),
  );
}

const transposed = (values_LT) => values_LT[0].map((_, token) => values_LT.map((row) => row[token]));
export const difference = (first, second) => first.map((row, at) => row.map((value, place) => value - second[at][place]));

function picture(fact, run) {
  const name = `fact ${fact.id}`;
  const panels = [{ title: `${fact.component} ${run.rule_title}`, values: fact.scores, what: "score" }];
  if (fact.effects) {
    panels.push({ title: `exact effect (${fact.ablation} ablation)`, values: fact.effects, what: "exact" });
    panels.push({ title: "score − exact effect", values: difference(fact.scores, fact.effects), what: "difference" });
  }
  const scale = Math.max(fact.scale, fact.effects_scale ?? 0);
  return panelled({ name, fact, panels, scale, colours: run.colours, hover: hoverOf(fact), marked: fact.is_exact });
}

// What the pointer shows of a cell, the same in all panels.
function hoverOf(fact) {
  const total = fact.scores.flat().reduce((sum, value) => sum + Math.abs(value), 0) || 1;
  return (layer, token) => {
    const value = fact.scores[layer][token];
    const exact = fact.effects ? fact.effects[layer][token] : null;
    const isExact = fact.is_exact?.[layer][token];
    return [
      `<b>${plain(visible(fact.tokens[token]))}</b>  token ${token}, ${fact.roles[token]}`,
      `layer ${fact.layers[layer]}`,
      `score ${score(value)}${isExact ? " (exact)" : ""}`,
      exact === null ? "" : `exact effect ${score(exact)}`,
      exact === null ? "" : `difference ${score(value - exact)}`,
      `${percent(Math.abs(value) / total)} of all |scores|`,
    ]
      .filter((line) => line)
      .join("<br>");
  };
}

// Heatmaps side by side with one scale: tokens downwards, layers to the right, as in the PNG files.
export function panelled({ name, fact, panels, scale, colours, hover, marked = null }) {
  const layers = panels[0].layers ?? fact.layers;
  const width = 1 / panels.length;
  const texts = transposed(layers.map((_, layer) => fact.tokens.map((__, token) => hover(layer, token))));
  const traces = [];
  const layout = {
    ...mapGround(),
    yaxis: rowAxis(tokenLabels(fact.tokens).map((label, at) => (isSubject(fact, at) ? `<b><u>${label}</u></b>` : label))),
    annotations: [],
  };
  panels.forEach((panel, at) => {
    const axis = at ? String(at + 1) : "";
    const domain = [at * width + (at ? 0.012 : 0), (at + 1) * width - (at < panels.length - 1 ? 0.012 : 0)];
    const showScale = at === panels.length - 1;
    traces.push(...heatmap({ values: transposed(panel.values), layers, scale, colours, axis, texts, showScale }));
    if (marked && panel.what === "score") traces.push(dots(transposed(marked), axis));
    layout[`xaxis${axis}`] = layerAxis(layers, { domain, anchor: "y" });
    layout.annotations.push(panelTitle(panel.title, domain));
  });
  const largest = Math.max(...panels.flatMap((panel) => panel.values.flat().map(Math.abs)));
  const height = Math.max(240, (fact.tokens.length + 0.35) * ROW + 90);
  const table = () => [
    ["position", "token", "role", "layer", ...panels.map((panel) => panel.what)],
    ...fact.tokens.flatMap((token, position) =>
      layers.map((layer, place) => [position, token, fact.roles[position], layer, ...panels.map((panel) => panel.values[place][position])]),
    ),
  ];
  const chart = figure({ name, height, traces, layout, table, label: `Heatmap of ${fact.prompt}` });
  const notes = [
    `Colours end at ±${score(scale).slice(1)} logits, the largest below position 0` + (largest > scale * 1.0001 ? `; values reach ${score(largest).slice(1)}.` : "."),
    marked ? "Dots: the score is the exact effect." : "",
  ];
  return h("div", {}, chart, h("p", { class: "soft" }, notes.filter((each) => each).join(" ")));
}

function isSubject(fact, token) {
  return token >= fact.subject_span[0] && token < fact.subject_span[1];
}

function neurons(fact) {
  if (!fact.neurons.length) return null;
  const rows = fact.neurons.map((each) =>
    h("tr", {}, [each.layer, each.neuron].map((value) => h("td", { class: "right" }, String(value))), h("td", {}, h("bdi", {}, visible(fact.tokens[each.token] ?? ""))), h("td", { class: "right" }, score(each.score))),
  );
  const names = ["layer", "neuron", "token", "score"].map((name) => h("th", { scope: "col" }, name));
  return h("div", {}, h("h3", {}, "Neurons with the largest scores"), h("table", { class: "list narrow", id: "neurons" }, h("thead", {}, h("tr", {}, names)), h("tbody", {}, rows)));
}

// Keys of a fact; true where one was meant.
export function factKey(event) {
  if (event.key === "ArrowLeft") document.getElementById("previous")?.click();
  else if (event.key === "ArrowRight") document.getElementById("next")?.click();
  else if (event.key === "Escape") change({ view: "facts" });
  else return false;
  return true;
}
