// Two runs over the same facts: figures of the comparison, both role maps, answers that changed, a fact side by side.

import { get } from "./api.js";
import { figure, heatmap, layerAxis, mapGround, panelTitle, plain, rowAxis } from "./charts.js";
import { h, note, number, percent, score, select, visible } from "./dom.js";
import { difference, heading, panelled } from "./fact.js";
import { hasEffects, hoverText, MEASURES, scaleOf, transposed } from "./maps.js";
import { change } from "./state.js";

const ROW = 26; // pixels

export async function pairView(state, run, runs) {
  const others = runs.filter((name) => name !== state.run);
  if (!others.length) return note("There is one run. Start TensorBoard on a folder above several: tensorboard --logdir FOLDER", "empty");
  const chooser = h("div", { class: "bar" }, h("h2", {}, state.run), h("span", { class: "soft" }, "compared with"), select("other run", [["", "choose …"], ...others.map((name) => [name, name])], state.other ?? "", (other) => change({ other })));
  if (!others.includes(state.other)) return h("section", {}, chooser, note("Choose the other run: a fine-tune, another number format or another rule over the same facts.", "empty"));
  const component = state.component;
  const [found, first, second] = await Promise.all([
    get("pair", { run: state.run, other: state.other, component }),
    get("overview", { run: state.run, component }),
    get("overview", { run: state.other, component }),
  ]);
  return h(
    "section",
    { class: "pair" },
    chooser,
    lead(found.comparison),
    state.id ? await sideBySide(state, run) : null,
    maps(state, run, first.summary.profile, second.summary.profile),
    h("div", { class: "columns" }, changed(found.changed), byLayer(found.comparison)),
  );
}

function lead({ contrasts, left_out, all, answers }) {
  const missing = Object.entries(left_out).filter(([, count]) => count).map(([name, count]) => `${count} ${name.replace("_", " ")}`);
  const items = [
    ["contrasts compared", contrasts.toLocaleString("en"), missing.length ? `left out: ${missing.join(", ")}` : "all that there are"],
    ["r of the scores", number(all.pearson, 4), "over all cells"],
    ["norm ratio", number(all.norm_ratio, 3), "second over first"],
    ["logit difference", number(answers.mean_change, 3), "mean absolute change"],
    ["answers changed", String(answers.preferred_changed), `preferred; known in ${answers.known_changed}`],
  ];
  return h("dl", { class: "numbers", id: "comparison" }, items.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "soft" }, more))));
}

async function sideBySide(state, run) {
  const ask = (name) => get("fact", { run: name, component: state.component, id: state.id, step: state.step });
  let facts;
  try {
    facts = await Promise.all([ask(state.run), ask(state.other)]);
  } catch (error) {
    return note(error.message, "problem");
  }
  const [one, two] = facts;
  if (one.tokens.join("\0") !== two.tokens.join("\0")) return note("The runs split this prompt into other tokens: the two cannot be laid side by side.", "problem");
  const layers = one.layers.filter((layer) => two.layers.includes(layer));
  const rows = facts.map((fact) => layers.map((layer) => fact.scores[fact.layers.indexOf(layer)]));
  const panels = [
    { title: state.run, values: rows[0], what: "first", layers },
    { title: state.other, values: rows[1], what: "second", layers },
    { title: "second − first", values: difference(rows[1], rows[0]), what: "difference", layers },
  ];
  const hover = (layer, token) =>
    [
      `<b>${plain(visible(one.tokens[token]))}</b>  token ${token}, ${one.roles[token]}`,
      `layer ${layers[layer]}`,
      `first ${score(rows[0][layer][token])}`,
      `second ${score(rows[1][layer][token])}`,
      `difference ${score(rows[1][layer][token] - rows[0][layer][token])}`,
    ].join("<br>");
  const differences = facts.map((fact) => `${number(fact.logit_diff, 2, true)} (rank ${fact.rank_true})`);
  return h(
    "div",
    { id: "side" },
    heading(one),
    h("p", {}, `logit difference ${differences[0]} in the first, ${differences[1]} in the second`, h("button", { type: "button", class: "small", onclick: () => change({ id: null, step: null }) }, "Close")),
    panelled({ name: `fact ${one.id} in two runs`, fact: one, panels, scale: Math.max(one.scale, two.scale), colours: run.colours, hover }),
  );
}

function maps(state, run, first, second) {
  const measure = hasEffects(first) && hasEffects(second) ? "mean_effect" : "mean_score";
  const layers = first.layers.filter((layer) => second.layers.includes(layer));
  const common = (profile) => ({ ...profile, ...Object.fromEntries(Object.keys(MEASURES).flatMap((name) => [name, ...MEASURES[name].slice(1)]).map((name) => [name, layers.map((layer) => profile[name][profile.layers.indexOf(layer)])])), layers });
  const [one, two] = [common(first), common(second)];
  const [ones, twos] = [one, two].map((profile) => transposed(profile[measure], profile.roles));
  const changes = ones.map((row, role) => row.map((value, layer) => (value === null || twos[role][layer] === null ? null : twos[role][layer] - value)));
  const scale = scaleOf(ones, twos);
  const texts = one.roles.map((_, role) =>
    layers.map((__, layer) => [`first: ${hoverText(one, measure, layer, role)}`, `second: ${hoverText(two, measure, layer, role)}`, `difference ${score(changes[role][layer])}`].join("<br><br>")),
  );
  const traces = [];
  const layout = { ...mapGround(), yaxis: rowAxis(one.roles.map(plain)), annotations: [] };
  [[state.run, ones], [state.other, twos], ["second − first", changes]].forEach(([title, values], at) => {
    const axis = at ? String(at + 1) : "";
    const domain = [at / 3 + (at ? 0.012 : 0), (at + 1) / 3 - (at < 2 ? 0.012 : 0)];
    traces.push(...heatmap({ values, layers, scale, colours: run.colours, axis, texts, showScale: at === 2 }));
    layout[`xaxis${axis}`] = layerAxis(layers, { domain, anchor: "y" });
    layout.annotations.push(panelTitle(title, domain));
  });
  const table = () => [
    ["role", "layer", "first", "second", "difference"],
    ...one.roles.flatMap((role, at) => layers.map((layer, place) => [role, layer, ones[at][place], twos[at][place], changes[at][place]])),
  ];
  return h("div", {}, h("h2", {}, `Token roles by layer: ${MEASURES[measure][0]}`), figure({ name: "roles of two runs", height: (one.roles.length + 0.35) * ROW + 100, traces, layout, table }));
}

function changed(rows) {
  if (!rows.length) return h("div", {}, h("h2", {}, "Answers that changed"), note("No preferred and no known answer changed.", "empty"));
  const open = (row) => () => change({ id: JSON.stringify(row.id), step: row.step || null });
  const body = rows.map((row) =>
    h(
      "tr",
      { tabindex: "0", "data-id": JSON.stringify(row.id), onclick: open(row), onkeydown: (event) => event.key === "Enter" && open(row)() },
      h("td", { class: "prompt", title: row.prompt }, h("bdi", {}, row.prompt), h("span", { class: "soft" }, " → "), h("bdi", { class: "true" }, row.target_true.trim()), h("span", { class: "soft" }, " / "), h("bdi", { class: "false" }, row.target_false.trim())),
      row.logit_diff.map((value) => h("td", { class: `right ${value > 0 ? "" : "negative"}` }, number(value, 2, true))),
      h("td", { class: "right" }, row.rank_true.map((rank) => rank.toLocaleString("en")).join(" → ")),
    ),
  );
  const head = ["prompt → true / false", "logit diff. first", "second", "rank"].map((name, at) => h("th", { scope: "col", class: at ? "right" : "" }, name));
  return h("div", {}, h("h2", {}, "Answers that changed"), h("table", { class: "list", id: "changed" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

function byLayer({ all, by_layer }) {
  const rows = [["all", all], ...Object.entries(by_layer)].map(([name, row]) =>
    h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "right" }, number(row.pearson, 4)), h("td", { class: "right" }, number(row.norm_ratio, 3)), h("td", { class: "right" }, percent(row.largest_error))),
  );
  const head = ["layer", "r", "norm ratio", "largest error"].map((name, at) => h("th", { scope: "col", class: at ? "right" : "" }, name));
  return h("div", {}, h("h2", {}, "Scores by layer"), h("table", { class: "list narrow", id: "layers" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}
