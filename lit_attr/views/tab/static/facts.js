// The table of all facts, paged, sorted and filtered by the backend.

import { address, get } from "./api.js";
import { h, number, note, percent, probability, score, select } from "./dom.js";
import { change, FILTERS } from "./state.js";

const RELATION = "relation";
const COLUMNS = [
  ["id", "id", "The fact's id", "right"],
  [null, "prompt → true / false", "What the model is asked, and the two answers", ""],
  [null, RELATION, "Wikidata property", ""],
  ["logit_diff", "logit diff.", "Logit of the true answer less that of the false one", "right"],
  ["prob_true", "p(true)", "Probability of the true answer's token", "right"],
  ["rank_true", "rank", "How many tokens are more likely than the true one; 0: a known fact", "right"],
  ["largest", "largest score", "The score of largest magnitude at any token but the first, with its layer", "right"],
  ["error", "error", "‖score − exact effect‖ / ‖exact effect‖ without the first token, where it is known", "right"],
];
const WAIT = 200; // milliseconds of no typing before a search

let timer = null;

export function parameters(state) {
  const given = { run: state.run, component: state.component };
  for (const name of FILTERS) given[name] = state[name];
  return given;
}

export async function factsView(state, run) {
  const page = Number(state.page) || 1;
  let found;
  try {
    found = await get("facts", { ...parameters(state), page });
  } catch (error) {
    // Fewer rows than before, as with another filter in an old link.
    if (error.status !== 404 || page === 1) throw error;
    found = await get("facts", { ...parameters(state), page: 1 });
  }
  return h("section", { class: "facts" }, filterBar(state, run), table(state, found, run));
}

function filterBar(state, run) {
  const set = (name) => (value) => change({ [name]: value, page: null });
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search prompts and answers  ( / )",
    value: state.search ?? "",
    "aria-label": "Search prompts and answers",
    oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => change({ search: event.target.value, page: null }), WAIT);
    },
  });
  const relations = run.relations.map(({ name, count }) => [name, `${name} (${count.toLocaleString("en")})`]);
  const both = [["", "all"]];
  return h(
    "div",
    { class: "bar" },
    search,
    relations.length > 1 ? select("relation", [...both, ...relations], state.relation ?? "", set("relation")) : null,
    select("known", [...both, ["yes", "known"], ["no", "not known"]], state.known ?? "", set("known")),
    select(
      "preferred",
      [...both, ["yes", "true answer"], ["no", "false answer"]],
      state.preferred ?? "",
      set("preferred"),
    ),
    run.checked
      ? select("exact effects", [...both, ["yes", "with"], ["no", "without"]], state.checked ?? "", set("checked"))
      : null,
    cellChip(state),
    FILTERS.some((name) => state[name])
      ? h(
          "button",
          { type: "button", class: "small", onclick: () => change(Object.fromEntries([...FILTERS, "page"].map((name) => [name, null]))) },
          "Clear",
        )
      : null,
    h("a", { class: "button small", href: address("facts.csv", parameters(state)), download: "facts.csv" }, "CSV"),
  );
}

function cellChip(state) {
  if (!state.role) return null;
  return h(
    "button",
    {
      type: "button",
      class: "chip",
      title: "Leave the cell",
      onclick: () => change({ layer: null, role: null, sort: null, order: null, page: null }),
    },
    `layer ${state.layer}, ${state.role} ✕`,
  );
}

function table(state, found, run) {
  if (!found.total) {
    const reason = run.contrasts
      ? "No fact matches. Clear a filter, or search for fewer words."
      : "No fact is done yet. Refresh the page once the run has written its first batch.";
    return note(reason, "empty");
  }
  const hasRelations = run.relations.length > 0;
  const cell = ["cell", "in this cell", "Mean score over its tokens of the role", "right"];
  const columns = [...COLUMNS, ...(state.role ? [cell] : [])].filter(([, name]) => hasRelations || name !== RELATION);
  const head = columns.map(([sort, name, title, kind]) => heading(state, sort, name, title, kind));
  return h(
    "div",
    {},
    h(
      "table",
      { class: "list", id: "facts" },
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, found.rows.map((row) => factRow(row, Boolean(state.role), hasRelations, run.has_steps))),
    ),
    pager(found),
  );
}

function heading(state, sort, name, title, kind) {
  if (!sort) return h("th", { scope: "col", title, class: kind }, name);
  const current = state.sort ?? "id";
  const isDescending = state.order === "desc";
  const isThis = sort === current;
  const click = () =>
    change({ sort, order: isThis ? (isDescending ? null : "desc") : sort === "id" || sort === "rank_true" ? null : "desc", page: null });
  return h(
    "th",
    { scope: "col", class: kind, "aria-sort": isThis ? (isDescending ? "descending" : "ascending") : null },
    h("button", { type: "button", class: "sort", title, "data-sort": sort, onclick: click }, name + (isThis ? (isDescending ? " ▾" : " ▴") : "")),
  );
}

export function openFact(row) {
  change({ view: "fact", id: JSON.stringify(row.id), step: row.step || null });
}

function factRow(row, hasCell, hasRelations, hasSteps) {
  const open = () => openFact(row);
  return h(
    "tr",
    {
      tabindex: "0",
      "data-id": JSON.stringify(row.id),
      "data-step": String(row.step),
      onclick: open,
      onkeydown: (event) => event.key === "Enter" && open(),
    },
    h("td", { class: "right soft" }, String(row.id) + (hasSteps ? ` · ${row.step}` : "")),
    h(
      "td",
      { class: "prompt", title: row.prompt },
      h("bdi", {}, row.prompt),
      h("span", { class: "soft" }, " → "),
      h("bdi", { class: "true" }, row.target_true.trim()),
      h("span", { class: "soft" }, " / "),
      h("bdi", { class: "false" }, row.target_false.trim()),
    ),
    hasRelations ? h("td", { class: "soft" }, row.relation) : null,
    h("td", { class: `right ${row.logit_diff > 0 ? "" : "negative"}` }, number(row.logit_diff, 2, true)),
    h("td", { class: "right" }, probability(row.prob_true)),
    h("td", { class: "right" }, row.rank_true === 0 ? h("b", { title: "known" }, "0") : row.rank_true.toLocaleString("en")),
    h("td", { class: "right" }, score(row.largest.score), h("span", { class: "soft" }, ` L${row.largest.layer}`)),
    h("td", { class: "right" }, row.error === null ? (row.is_checked ? "exact" : "") : percent(row.error, 0)),
    hasCell ? h("td", { class: "right" }, score(row.cell)) : null,
  );
}

function pager(found) {
  const pages = Math.max(1, Math.ceil(found.total / found.size));
  const button = (text, page, title) =>
    h("button", { type: "button", class: "small", title, disabled: page < 1 || page > pages || page === found.page, onclick: () => change({ page: page === 1 ? null : page }) }, text);
  const first = (found.page - 1) * found.size + 1;
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    button("«", 1, "First page"),
    button("‹", found.page - 1, "Page before ([)"),
    h("span", { id: "rows" }, `${first.toLocaleString("en")}–${Math.min(found.total, found.page * found.size).toLocaleString("en")} of ${found.total.toLocaleString("en")}`),
    button("›", found.page + 1, "Next page (])"),
    button("»", pages, "Last page"),
    h("span", { class: "soft keys" }, "↑ ↓ choose · Enter open · [ ] page · / search"),
  );
}

// Keys of the table; true where one was meant.
export function factsKey(event, state) {
  const rows = [...document.querySelectorAll("#facts tbody tr")];
  if (event.key === "/") document.getElementById("search")?.focus();
  else if (event.key === "[") document.querySelector('.pager [title^="Page before"]')?.click();
  else if (event.key === "]") document.querySelector('.pager [title^="Next page"]')?.click();
  else if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key) && rows.length) {
    const at = rows.indexOf(document.activeElement);
    const down = event.key === "ArrowDown" || event.key === "j";
    rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + (down ? 1 : -1)))].focus();
  } else return false;
  return true;
}
