// What the sections share: names of layers, pairs of panels, headings.

function layerName(run, index) {
  const { block, branch, name } = run.layers[index];
  const alone = run.layers.filter((other) => other.block === block).length === 1;
  const part = branch && branch !== "shared" ? ` ${branch}` : alone ? "" : ` ${name.split(".").at(-1)}`;
  return `block ${block}${part}`;
}

const layerNames = (run) => range(run.layers.length).map((i) => layerName(run, i));
const layerOf = (run, name) => run.layers.findIndex((layer) => layer.name === name);
const expertNames = (n) => range(n).map(String);

function explained(id, title, sentence, ...content) {
  // A section: its heading, one plain sentence, the figures.
  const kept = content.flat().filter(Boolean);
  if (!kept.length) return null;
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), el("p", { class: "lead" }, sentence), kept);
}

const sub = (title, sentence) => el("header", { class: "sub" }, el("h3", {}, title), sentence ? el("p", {}, sentence) : null);

const tag = (index) => el("span", { class: `run run-${index}` }, runs[index].summary.name);

function sides(make, lacking = "Nothing of this kind in this run.", named = true) {
  // A column per run, headed by its name where there are two; in a row below a named one
  // only where columns are stacked. make(run, index) may return null.
  const made = runs.map((run, index) => make(run, index));
  if (made.every((part) => !part)) return null;
  return el("div", { class: two ? "sides two" : "sides" }, made.map((part, index) =>
    el("div", { class: "side" }, two ? el("div", { class: named ? "whose" : "whose below" }, tag(index)) : null, part ?? el("p", { class: "note" }, lacking))));
}

function refilled(fill) {
  // A place whose content is made anew by calling the function that comes with it.
  const place = el("div", { class: "refilled" });
  const again = () => place.replaceChildren(...[fill()].flat().filter(Boolean));
  return [place, again];
}

// The run's name in front of a line of a chart, where there are two runs.
const ours = (run, text) => (two ? `${run.summary.name}${text ? `, ${text}` : ""}` : text || run.summary.name);

// Whether a token can reach more than one expert at all.
const spreads = (run) => run.layers.some((layer) => Math.min(layer.num_heads * layer.choices, layer.num_experts) > 1);

// The experts that carried out an assignment, with their weights where these are known, or that none did.
const weighed = (id, weight) => (known(weight) ? `${id} (${fixed(weight)})` : String(id));
const carried = (ids, weights) => ids.map((id, i) => (id >= 0 ? weighed(id, weights?.[i]) : null)).filter(Boolean).join(", ") || "refused";

const first = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const controls = (...parts) => el("div", { class: "controls" }, parts);

function expertChip(expert, experts, more) {
  const chip = el("span", { class: "chip" }, String(expert), more ? el("small", {}, more) : null);
  const paint = () => {
    const colour = expertColour(expert, experts);
    chip.style.background = rgb(colour);
    chip.style.color = inkOn(colour);
  };
  paint();
  onTheme(paint);
  return chip;
}
