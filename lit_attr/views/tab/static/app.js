// The Attributions tab: reads the address, asks the backend, shows one of four views.

import { get } from "./api.js";
import { redrawAll } from "./charts.js";
import { h, note, select } from "./dom.js";
import { factKey, factView } from "./fact.js";
import { factsKey, factsView } from "./facts.js";
import { overviewView } from "./overview.js";
import { pairView } from "./pair.js";
import { change, onChange, onReload, onTheme, read } from "./state.js";

const VIEWS = [
  ["overview", "Overview"],
  ["facts", "Facts"],
  ["fact", "A fact"],
  ["pair", "Two runs"],
];

const page = { runs: [], run: null, shown: 0 };

// TensorBoard calls this once.
export async function render() {
  document.documentElement.lang = "en";
  document.head.append(h("link", { rel: "stylesheet", href: new URL("tab.css", import.meta.url) }));
  document.body.append(h("header", { id: "top" }), h("main", { id: "view", tabindex: "-1" }), h("div", { id: "busy", role: "status" }, "Reading the records …"));
  // Keys are meant for this tab, which is in a frame, from the start.
  document.getElementById("view").focus({ preventScroll: true });
  onTheme((theme) => {
    document.documentElement.dataset.theme = theme;
    redrawAll();
  });
  onChange(() => show());
  onReload(() => refresh());
  document.addEventListener("keydown", onKey);
  await refresh();
}

// Looks for runs and for what was added to this one.
async function refresh() {
  page.run = null;
  await show();
}

async function show() {
  page.shown += 1;
  const turn = page.shown;
  const isCurrent = () => turn === page.shown;
  document.body.setAttribute("aria-busy", "true");
  document.body.dataset.ready = "no";
  try {
    const { state, advice } = await prepared();
    if (!isCurrent()) return;
    const view = advice ? note(advice, "empty") : await content(state);
    if (!isCurrent()) return;
    replaceKeepingFocus(advice ? null : state, view);
  } catch (error) {
    if (!isCurrent()) return;
    replaceKeepingFocus(page.run ? read() : null, note(error.message, "problem"));
  }
  document.body.removeAttribute("aria-busy");
  document.body.dataset.ready = "yes";
}

async function prepared() {
  if (!page.run || read().run !== page.run.name) {
    const { runs, advice } = await get("runs");
    page.runs = runs;
    if (!runs.length) return { advice };
    const name = runs.includes(read().run) ? read().run : runs[0];
    if (read().run && read().run !== name) {
      throw new Error(`There is no run ${read().run} under the log folder any more; choose another above`);
    }
    page.run = { name, ...(await get("run", { run: name })) };
  }
  return { state: { view: "overview", ...read(), run: page.run.name } };
}

function content(state) {
  if (state.view === "facts") return factsView(state, page.run);
  if (state.view === "fact") return factView(state, page.run);
  if (state.view === "pair") return pairView(state, page.run, page.runs);
  return overviewView(state, page.run);
}

function replaceKeepingFocus(state, view) {
  const active = document.activeElement;
  const { id } = active ?? {};
  const selection = active instanceof HTMLInputElement ? [active.selectionStart, active.selectionEnd, active.value] : null;
  document.getElementById("top").replaceChildren(...top(state));
  document.getElementById("view").replaceChildren(...(page.run ? problems(page.run) : []), view);
  const again = id ? document.getElementById(id) : null;
  again?.focus();
  if (again && selection) {
    // What was typed while the answer was on its way stays.
    [again.value] = [selection[2]];
    again.setSelectionRange(selection[0], selection[1]);
  }
}

function top(state) {
  const reload = h("button", { type: "button", id: "refresh", title: "Read what was added (r)", onclick: () => refresh() }, "Refresh");
  if (!page.runs.length) return [h("h1", {}, "Attributions"), reload];
  const current = state?.run ?? read().run ?? "";
  const listed = page.runs.includes(current) ? page.runs : [current, ...page.runs];
  const tabs = VIEWS.map(([view, title]) =>
    h("button", { type: "button", class: "tab", "data-view": view, "aria-current": state?.view === view ? "page" : null, onclick: () => change({ view }) }, title),
  );
  const { run } = page;
  return [
    select("run", listed.map((name) => [name, name || "choose …"]), current, (name) => change({ run: name, id: null, step: null, page: null, relation: null, component: null })),
    run && run.components.length > 1 ? select("component", run.components.map((name) => [name, name]), state?.component ?? run.components[0], (component) => change({ component })) : null,
    h("nav", { "aria-label": "Views" }, tabs),
    h("span", { class: "soft", id: "progress" }, run ? progress(run) : ""),
    reload,
  ].filter((each) => each);
}

function progress(run) {
  const model = run.model ? String(run.model).split("/").pop() : "demo model";
  const done = run.contrasts.toLocaleString("en");
  const count = run.expected && run.expected !== run.contrasts ? `${done} of ${run.expected.toLocaleString("en")}` : done;
  return `${model} · ${run.rule_title} · ${count} contrasts${run.is_finished ? "" : ", not finished"}`;
}

function problems(run) {
  if (!run.problems.length) return [];
  const lines = run.problems.slice(0, 20).map((line) => h("li", {}, h("bdi", {}, line)));
  return [
    h(
      "div",
      { class: "problem", id: "problems", role: "alert" },
      h("p", {}, `${run.problems.length} ${run.problems.length === 1 ? "file is" : "files are"} left out:`),
      h("ul", {}, lines),
    ),
  ];
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isField = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (isField) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const { view = "overview" } = read();
  const at = ["1", "2", "3", "4"].indexOf(event.key);
  let isMeant = true;
  if (at >= 0) change({ view: VIEWS[at][0] });
  else if (event.key === "r") refresh();
  else if (view === "facts") isMeant = factsKey(event, read());
  else if (view === "fact") isMeant = factKey(event);
  else isMeant = false;
  if (isMeant) event.preventDefault();
}
