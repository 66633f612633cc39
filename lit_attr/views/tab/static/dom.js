// Elements and numbers. Text from data becomes text nodes, never markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value, digits = 2, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  const isZero = Number(text) === 0;
  if (value < 0 && !isZero) return `−${text}`;
  return signed && !isZero ? `+${text}` : text;
}

// Scores of any size: three significant digits.
export function score(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const sign = value < 0 ? "−" : "+";
  if (size >= 1e5 || size < 1e-3) return sign + size.toExponential(2);
  return sign + size.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}%`;
}

export function probability(value) {
  return value > 0 && value < 0.0005 ? value.toExponential(1) : value.toFixed(3);
}

export function interval(ends, digits = 3) {
  return ends ? `${number(ends[0], digits, true)} to ${number(ends[1], digits, true)}` : "no interval";
}

// A token or an answer with its leading space and its line breaks made visible.
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || '""';
}

export function shortened(text, most) {
  const characters = [...text];
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("")}…`;
}

export function select(label, options, chosen, change) {
  const list = h(
    "select",
    { "aria-label": label, onchange: (event) => change(event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), list);
}

export function note(text, kind = "note") {
  return h("p", { class: kind, role: kind === "problem" ? "alert" : null }, text);
}
