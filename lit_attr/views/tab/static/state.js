// What the tab shows is in the address of the page: run, view, filters and fact. TensorBoard keeps such keys.

const PREFIX = "p.attributions.";
const host = (() => {
  try {
    return window.parent.location.href ? window.parent : window;
  } catch {
    return window;
  }
})();

export const FILTERS = ["search", "relation", "known", "preferred", "checked", "sort", "order", "layer", "role"];
// Steps back in the browser go through these; the others change in place.
const STEPS = ["run", "view", "id", "step", "other", "page", "layer", "role"];

export function read() {
  const state = {};
  for (const part of host.location.hash.replace(/^#/, "").split("&")) {
    const [name, ...rest] = part.split("=");
    const key = decode(name);
    if (key.startsWith(PREFIX)) state[key.slice(PREFIX.length)] = decode(rest.join("="));
  }
  return state;
}

export function change(changes) {
  const before = read();
  const state = { ...before, ...changes };
  const foreign = host.location.hash
    .replace(/^#/, "")
    .split("&")
    .filter((part) => part && !decode(part.split("=")[0]).startsWith(PREFIX));
  if (!foreign.length) foreign.push("attributions");
  const own = Object.entries(state)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => `${PREFIX}${name}=${encodeURIComponent(value)}`);
  const hash = `#${[...foreign, ...own].join("&")}`;
  if (hash === host.location.hash) return;
  const isStep = STEPS.some((name) => (before[name] ?? "") !== (state[name] ?? ""));
  host.history[isStep ? "pushState" : "replaceState"](host.history.state, "", hash);
  window.dispatchEvent(new Event("attributions-state"));
}

export function onChange(listener) {
  window.addEventListener("attributions-state", listener);
  for (const event of ["popstate", "hashchange"]) host.addEventListener(event, listener);
}

export function onTheme(listener) {
  const apply = () => listener(isDark() ? "dark" : "light");
  if (host !== window) {
    new MutationObserver(apply).observe(host.document.body, { attributes: true, attributeFilter: ["class"] });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

function isDark() {
  // TensorBoard has its own switch; alone, the page follows the system.
  if (host !== window) return host.document.body.classList.contains("dark-mode");
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

// TensorBoard's reload button and timer reach plugins in frames through a channel that the frame opens.
export function onReload(listener) {
  if (host === window) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    channel.port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
    if (message.type === "experimental.DataReloaded") listener();
  };
  host.postMessage("experimental.bootstrap", host.location.origin, [channel.port2]);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
