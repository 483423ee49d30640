// Building blocks of the document. Text is only ever set as text, so what a caption says cannot
// become markup.

function el(tag, attributes = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG_TAGS = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "polyline", "tspan"]);

const range = (n) => Array.from({ length: n }, (_, i) => i);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => (values.length ? sum(values) / values.length : NaN);
const known = (x) => x !== null && x !== undefined && Number.isFinite(x);

let lastId = 0;
const freshId = (stem) => `${stem}-${++lastId}`;

// Numbers as people read them; a missing one is a dash.
const percent = (x, digits = 1) => (known(x) ? `${(100 * x).toFixed(digits)} %` : "–");
const fixed = (x, digits = 2) => (known(x) ? x.toFixed(digits) : "–");
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const whole = (x) => (known(x) ? grouped.format(x) : "–");
const times = (x) => (known(x) ? `${x.toFixed(x < 9.95 ? 2 : 1)}×` : "–");

function short(x) {
  if (!known(x)) return "–";
  const size = Math.abs(x);
  if (size >= 1e9) return `${+(x / 1e9).toPrecision(3)} G`;
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${+(x / 1e3).toPrecision(3)} k`;
  if (size !== 0 && size < 1e-3) return x.toExponential(1);
  return `${+x.toPrecision(4)}`;
}

const plural = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

function choice(label, options, chosen, changed) {
  // A row of radio buttons for few options, a list for many. Options are [value, text] pairs.
  const name = freshId("choice");
  if (options.length > 6) {
    const list = el("select", { id: name, onchange: () => changed(list.value) },
      options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
    return el("div", { class: "choice" }, el("label", { for: name }, label), list);
  }
  return el("fieldset", { class: "choice" }, el("legend", {}, label),
    el("div", { class: "segments" }, options.map(([value, text]) => {
      const id = freshId("option");
      return [
        el("input", { type: "radio", id, name, value, checked: value === chosen, onchange: () => changed(value) }),
        el("label", { for: id }, text),
      ];
    })));
}

function slider(label, steps, chosen, changed) {
  // A slider over named positions.
  const id = freshId("slider");
  const shown = el("output", { for: id }, steps[chosen]);
  const input = el("input", {
    type: "range", id, min: 0, max: steps.length - 1, step: 1, value: chosen, "aria-valuetext": steps[chosen],
    oninput: () => {
      shown.textContent = steps[+input.value];
      input.setAttribute("aria-valuetext", steps[+input.value]);
      changed(+input.value);
    },
  });
  return el("div", { class: "choice" }, el("label", { for: id }, label), el("div", { class: "sliding" }, input, shown));
}

function table(columns, rows, caption) {
  // The first column heads its rows; columns of words are set left, of numbers right.
  const wordy = columns.map((_, i) => rows.some((row) => /^[^\d–×-]/.test(row[i]) && !/^any$/.test(row[i])));
  const side = (i) => (wordy[i] ? { class: "wordy" } : {});
  return el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, columns.map((text, i) => el("th", { scope: "col", ...side(i) }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) =>
        el(i ? "td" : "th", i ? side(i) : { scope: "row" }, cell)))))));
}

function numbers(summary, make) {
  // A table that is made when somebody asks for it.
  const box = el("details", { class: "numbers", ontoggle: () => {
    if (box.open && box.children.length === 1) box.append(make());
  } }, el("summary", {}, summary));
  return box;
}
