// How things went over training: the logger's figures and the experts' history.

const HISTORY = [
  ["activation", "Active experts", "100 % is best", (y) => percent(y, 0), "random_activation"],
  ["entropy_share", "Evenness of the load", "100 % is even", (y) => percent(y, 1)],
  ["max_over_mean", "Fullest expert", "in even shares, 1 is best", short],
  ["dead", "Dead experts", "per layer, 0 is best", short],
  ["router_entropy_share", "Indecision of the router", "100 % has not learned, 0 % is sure", (y) => percent(y, 0)],
  ["balance", "Balance loss", "1 is even", short],
  ["dropped_share", "Refused assignments", "0 % is best", (y) => percent(y, 1)],
];

function small(title, beside, chart) {
  return el("div", { class: "panel" }, el("p", { class: "title" }, title, beside ? el("small", {}, beside) : null), chart.node);
}

function averaged(series, field) {
  // The mean over layers at each step.
  const at = new Map();
  for (const one of series) one.steps.forEach((step, i) => {
    if (known(one[field][i])) at.set(step, [...(at.get(step) ?? []), one[field][i]]);
  });
  return [...at].sort(([a], [b]) => a - b).map(([step, values]) => [step, mean(values)]);
}

function curvesPart() {
  const names = [...new Set(runs.flatMap((run) => run.curves.map((curve) => curve.name)))];
  if (!names.length) return null;
  // What was not trained on says most; experts have figures of their own below.
  const rank = (name) => (/experts\//.test(name) ? 3 : /^(val|test)\//.test(name) ? 0 : /loss|accuracy|ppl/.test(name) ? 1 : 2);
  names.sort((a, b) => rank(a) - rank(b));
  const draw = (part) => part.map((name) => small(name, "", new Chart({
    label: name, xTitle: "step", height: 190,
    series: runs.flatMap((run, index) => run.curves.filter((c) => c.name === name).map((c) => ({ name: run.summary.name, points: c.steps.map((step, i) => [step, c.values[i]]), colour: () => runColour(index) }))),
  })));
  const grid = el("div", { class: "grid three" }, draw(names.slice(0, 6)));
  const more = names.length > 6 ? el("button", { type: "button", onclick: () => { grid.append(...draw(names.slice(6))); more.remove(); } }, `Show ${plural(names.length - 6, "more curve")}`) : null;
  return [sub("Losses and scores", "As the run logged them."), grid, more];
}

function historyPart() {
  const series = runs.map((run) => run.history);
  if (!series.flat().length) return null;
  const options = (field, given) => [...new Set(given.map((s) => s[field]))];
  const stages = options("stage", series.flat());
  let stage = stages.includes("val") && series.flat().filter((s) => s.stage === "val").some((s) => s.steps.length > 1) ? "val" : stages[0];
  const kinds = options("kind", series.flat());
  let kind = kinds.includes("all") ? "all" : kinds[0];
  const layers = [...new Set(runs.flatMap(layerNames))];
  let layer = "every";
  const of = (run) => run.history.filter((s) => s.stage === stage && s.kind === kind && (layer === "every" || layerName(run, layerOf(run, s.layer)) === layer));
  const [place, again] = refilled(() => {
    const charts = HISTORY.map(([field, title, beside, yText, twin]) => {
      const lines = runs.flatMap((run, index) => [
        { name: two ? run.summary.name : "this run", points: averaged(of(run), field), colour: () => runColour(index) },
        ...(twin ? [{ name: ours(run, "random"), points: averaged(of(run), twin), colour: () => runColour(index), dash: "3 4" }] : []),
      ]);
      const chart = new Chart({ label: `${title} over training`, xTitle: "step", yText, height: 190, series: lines });
      return chart.series.length ? small(title, beside, chart) : null;
    }).filter(Boolean);
    if (!charts.length) return el("p", { class: "note" }, "Nothing was recorded for this choice.");
    const maps = layer === "every" ? null : sides((run) => historyMap(of(run)[0]), "No loads over time in this run.");
    return [el("div", { class: "grid three" }, charts), maps];
  });
  again();
  return [
    sub("Experts over training", "Means over layers, or one layer, beside random routing where that is not constant."),
    controls(
      stages.length > 1 ? choice("Stage", stages.map((s) => [s, s]), stage, (value) => { stage = value; again(); }) : null,
      kinds.length > 1 ? choice("Tokens", kinds.map((k) => [k, k]), kind, (value) => { kind = value; again(); }) : null,
      layers.length > 1 ? choice("Layer", [["every", "mean of all"], ...layers.map((l) => [l, l])], layer, (value) => { layer = value; again(); }) : null),
    place,
  ];
}

function historyMap(one) {
  if (!one || !one.load_share.length || one.load_share.length !== one.steps.length) return null;
  const experts = one.load_share[0].length;
  const map = new Heatmap({
    label: "Load of every expert over training", rows: one.steps.map((step) => whole(step)), columns: expertNames(experts), rowTitle: "step", columnTitle: "expert, by step downwards",
    cell: (row, column) => {
      const share = one.load_share[row][column];
      if (!known(share)) return null;
      return { colour: scale("even", (share * experts) / 2), cross: share === 0, text: (share * experts).toFixed(1), value: percent(share), told: () => ({ title: `step ${whole(one.steps[row])}, expert ${column}`, lines: [["share", percent(share)], ["in even shares", times(share * experts)]] }) };
    },
  });
  return el("div", { class: "panel" }, el("p", { class: "title" }, "Load over training"), map.node, numbers("Numbers as a table", () => map.table()));
}

function trainingSection() {
  return explained("training", "Over training",
    "How losses and experts went from step to step: the load should stay close to random routing's evenness while the router grows sure and the loss falls.",
    curvesPart(), historyPart());
}
