// Which experts work: heatmaps of layers and experts, and the sweep over the threshold.

const SHARES = [[0, "0"], [0.25, "½"], [0.5, "even"], [0.75, "1½"], [1, "2× or more"]];

function loadCell(run, layers, pick) {
  return (row, column) => {
    const layer = run.layers[layers[row]];
    const counts = pick(layer);
    if (!counts || column >= layer.num_experts) return null;
    const count = counts.count[column];
    const total = sum(counts.count);
    const even = total / layer.num_experts;
    const load = even ? count / even : 0;
    const spread = even ? 2 * Math.sqrt((1 - 1 / layer.num_experts) / even) : 0;
    return {
      colour: scale("even", load / 2), cross: count === 0, text: load.toFixed(1), value: whole(count),
      told: () => ({ title: `${layerName(run, layers[row])}, expert ${column}`, lines: [
        ["assignments", whole(count)], ["share of the layer", percent(total ? count / total : NaN)], ["an even share", percent(1 / layer.num_experts)],
        ["in even shares", times(load)], ["chance alone", `${times(Math.max(0, 1 - spread))} to ${times(1 + spread)}`],
        ...(count === 0 ? ["dead: it read nothing"] : []),
      ] }),
    };
  };
}

function loadPanel(run, dimension, kind) {
  const pick = (layer) => layer.counts.find((c) => c.dimension === dimension && c.kind === kind);
  const layers = range(run.layers.length).filter((i) => pick(run.layers[i]));
  if (!layers.length) return null;
  const met = layers.map((i) => pick(run.layers[i]));
  const experts = Math.max(...layers.map((i) => run.layers[i].num_experts));
  const map = new Heatmap({
    label: `Load of experts by layer, ${kind === "all" ? "all tokens" : kind}${two ? `, ${run.summary.name}` : ""}`,
    rows: layers.map((i) => layerName(run, i)), columns: expertNames(experts), rowTitle: "layer", columnTitle: "expert",
    cell: loadCell(run, layers, pick),
  });
  const active = mean(met.map((c) => c.use.activation).filter(known));
  const chance = mean(met.map((c) => c.random.activation).filter(known));
  return el("div", { class: "panel" },
    el("p", { class: "title" }, kind === "all" ? "all tokens" : kind, el("small", {}, `${percent(active, 0)} active, by chance ${percent(chance, 0)}`)),
    map.node, numbers("Numbers as a table", () => map.table()));
}

function activitySection() {
  const ways = [...new Set(runs.flatMap((run) => run.dimensions.map((d) => d.name)))];
  const kindsOf = (name) => [...new Set(runs.flatMap((run) => run.dimensions.filter((d) => d.name === name).flatMap((d) => d.kinds)))]
    .filter((kind) => runs.some((run) => run.layers.some((layer) => layer.counts.some((c) => c.dimension === name && c.kind === kind))));
  let way = ways.find((name) => name === "modality" && kindsOf(name).length > 1) ?? "all";
  let kind = "every";
  const panels = () => {
    const kinds = way === "all" ? ["all"] : kind === "every" ? kindsOf(way) : [kind];
    return kinds.map((name, i) => sides((run) => loadPanel(run, way, name), `No ${name} tokens in this run.`, i === 0));
  };
  const [chosen, again] = refilled(() => {
    const kinds = way === "all" ? [] : kindsOf(way);
    const few = kinds.length <= 4;
    if (!few && kind === "every") kind = kinds[0];
    return kinds.length > 1 ? choice(first(way), [...(few ? [["every", "side by side"]] : []), ...kinds.map((k) => [k, k])], kind, (value) => { kind = value; show(); }) : null;
  });
  const [shown, show] = refilled(() => el("div", { class: two || kind !== "every" || way === "all" ? "stack" : "grid" }, panels()));
  const draw = () => { again(); show(); };
  draw();
  return explained("activity", "Which experts work",
    "Each row is a sparse layer, each column an expert, and the colour says how much it read compared with an even share: an even grey is balance, blue is idle, orange is busy, a cross is dead. Chance would look almost grey; columns of different layers have nothing in common.",
    controls(choice("Tokens told apart by", [["all", "not at all"], ...ways.map((name) => [name, name])], way, (value) => { way = value; kind = "every"; draw(); }), chosen),
    legend("even", SHARES, "load in even shares, on one scale everywhere"), shown);
}

// Between the recorded thresholds the counts themselves say how many experts are above one.
const BETWEEN = range(161).map((i) => 0.001 * 500 ** (i / 160));

function above(run, unit, tau) {
  return mean(run.layers.filter((layer) => layer.counts.length).map(({ counts: [all], num_heads: heads }) => {
    const tokens = unit === "token" ? all.tokens / heads : all.tokens;
    return all.count.filter((n) => n > tau * tokens + 1e-6).length / all.count.length;
  }));
}

function aboveByChance(run, unit, tau) {
  // The same for a binomial count of every expert, as a normal distribution.
  return mean(run.layers.filter((layer) => layer.counts.length).map(({ counts: [all], num_heads: heads }) => {
    const tokens = unit === "token" ? all.tokens / heads : all.tokens;
    const share = 1 / all.count.length;
    const assigned = sum(all.count);
    if (share === 1) return assigned > tau * tokens ? 1 : 0;
    return 1 - normal((Math.floor(tau * tokens) + 0.5 - assigned * share) / Math.sqrt(Math.max(assigned * share * (1 - share), 1e-12)));
  }));
}

// The normal distribution's cumulative function to 1e-7, Abramowitz and Stegun 26.2.17.
function normal(z) {
  const t = 1 / (1 + 0.2316419 * Math.abs(z));
  const tail = 0.3989422804 * Math.exp((-z * z) / 2) * t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  return z > 0 ? 1 - tail : tail;
}

function sweepSection() {
  const units = [...new Set(runs.flatMap((run) => run.activation.map((a) => a.unit)))];
  if (!units.length) return null;
  let unit = units[0];
  const [place, again] = refilled(() => {
    const given = runs.map((run, index) => [run, index, run.activation.find((a) => a.unit === unit)]).filter(([, , a]) => a);
    const ownTaus = (a) => (known(a.tau) && a.tau > 0 ? [a.tau] : []);
    const line = (run, a, own, at, between) => [...run.taus.map((tau, i) => [tau, at[i]]), ...ownTaus(a).filter((tau) => !run.taus.includes(tau)).map((tau) => [tau, own]),
      ...BETWEEN.filter((tau) => !run.taus.includes(tau)).map((tau) => [tau, between(run, unit, tau)])];
    const series = given.flatMap(([run, index, a]) => [
      { name: two ? run.summary.name : "this run", points: line(run, a, a.value, a.sweep, above), colour: () => runColour(index) },
      { name: ours(run, "random routing"), points: line(run, a, a.random, a.random_sweep, aboveByChance), colour: () => runColour(index), dash: "3 4" },
    ]);
    const chart = new Chart({
      label: `Share of active experts by threshold, per ${unit}`, series, log: true, stops: given.flatMap(([run, , a]) => [...run.taus, ...ownTaus(a)]), from: 0, to: 1.04, height: 300,
      xTitle: "threshold tau", yText: (y) => percent(y, 0),
      levels: [{ y: 0.9071, name: "90.71 %, MH-MoE in the paper", below: true }, { y: 0.0833, name: "8.33 %, sparse MoE in the paper" }],
      marks: given.filter(([, , a]) => known(a.tau) && a.tau > 0).map(([run, , a]) => ({ x: a.tau, name: `tau${two ? ` of ${run.summary.name}` : ""} = ${short(a.tau)}` })),
    });
    const rows = given.map(([run, , a]) => [run.summary.name, run.summary.layer_kind, percent(a.value, 2), percent(a.random, 2), short(a.tau), a.rule, percent(a.paper, 2)]);
    return [chart.node, table(["Run", "Layer", "Active", "Random routing", "Our tau", "Chosen as", "The paper has"], rows, `Active experts, frequency per ${unit}`)];
  });
  again();
  return explained("sweep", "How many experts are active",
    "An expert is active when its share of the tokens exceeds a threshold, tau: a good router keeps most experts active at a tau below the even share, as random routing (dotted) does, and collapse falls far below it early.",
    units.length > 1 ? controls(choice("Frequency per", units.map((u) => [u, u]), unit, (value) => { unit = value; again(); })) : null,
    place,
    el("p", { class: "note" }, "The paper (arXiv 2404.15045) reports 90.71 % for MH-MoE and 8.33 % for the sparse layer, but neither its tau nor whether it counts sub-tokens or tokens, and on other data with 32 experts: marks to look at, not a target."));
}
