// Which experts meet in a token: between heads, and from one layer to the next.

const LIFTS = [[0, "¼"], [0.25, "½"], [0.5, "chance"], [0.75, "2×"], [1, "4× or more"]];

function liftMap(run, one, rowTitle, columnTitle) {
  if (!one.count.length) return null;
  const rows = one.count.map(sum);
  const columns = one.count[0].map((_, j) => sum(one.count.map((row) => row[j])));
  const total = sum(rows);
  const map = new Heatmap({
    label: `Experts that meet, ${rowTitle} by ${columnTitle}`, rows: expertNames(rows.length), columns: expertNames(columns.length), rowTitle, columnTitle, square: true, widest: 30,
    cell: (row, column) => {
      const count = one.count[row][column];
      const chance = (rows[row] * columns[column]) / total;
      if (!chance) return null;
      const lift = count / chance;
      return { colour: scale("even", 0.5 + Math.log2(Math.max(lift, 1e-9)) / 4), text: lift >= 9.95 ? lift.toFixed(0) : lift.toFixed(1), value: whole(count),
        told: () => ({ title: `${rowTitle} ${row}, ${columnTitle} ${column}`, lines: [["pairs", whole(count)], ["by chance", short(+chance.toPrecision(3))], ["times as often", times(lift)]] }) };
    },
  });
  return [map.node, numbers("Numbers as a table", () => map.table())];
}

function strongest(one, firstName, secondName) {
  if (!one.strongest.length) return null;
  return table([firstName, secondName, "pairs", "times as often as by chance"], one.strongest.slice(0, 8).map((p) => [String(p.first), String(p.second), whole(p.count), times(p.lift)]), "Pairs that meet most beyond chance");
}

function headsMap(run, one) {
  const rows = one.same_by_heads;
  if (rows.length < 2) return null;
  const most = Math.max(...rows.flatMap((row, i) => row.filter((_, j) => j !== i)), one.random_same ?? 0, 1e-9);
  const map = new Heatmap({
    label: "Share of tokens where two heads chose the same expert", rows: expertNames(rows.length), columns: expertNames(rows.length), rowTitle: "head", columnTitle: "head", square: true, widest: 44,
    cell: (i, j) => (i === j ? null : { colour: scale("amount", rows[i][j] / most), text: percent(rows[i][j], 0), value: percent(rows[i][j]), told: () => ({ title: `heads ${i} and ${j}`, lines: [["chose the same expert", percent(rows[i][j])], ["by chance", percent(one.random_same)]] }) }),
  });
  return el("div", { class: "panel" }, el("p", { class: "title" }, "Heads that agree", el("small", {}, "share of tokens")), map.node);
}

function headsPart() {
  const names = [...new Set(runs.flatMap((run) => run.heads_together.map((one) => layerName(run, layerOf(run, one.layer)))))];
  if (!names.length) return null;
  let name = names.at(-1);
  const [place, again] = refilled(() => sides((run) => {
    const one = run.heads_together.find((each) => layerName(run, layerOf(run, each.layer)) === name);
    if (!one) return null;
    return [
      el("p", { class: "note" }, `Two heads of a token choose the same expert in ${percent(one.same)} of the pairs, by chance in ${percent(one.random_same)}; what one head chose tells ${fixed(one.information, 3)} nats of another's.`),
      el("div", { class: "pairing" }, el("div", { class: "panel", style: { "flex-basis": `${100 + Math.max(160, 12 * one.count.length)}px` } }, el("p", { class: "title" }, "Experts that meet in a token"), liftMap(run, one, "expert", "expert of another head") ?? strongest(one, "expert", "of another head")), headsMap(run, one)),
    ];
  }, "This layer has one head: nothing can meet in a token."));
  again();
  return [sub("Between the heads of a token", "Independent heads would leave this grey; orange pairs work on the same tokens."),
    names.length > 1 ? controls(choice("Layer", names.map((n) => [n, n]), name, (value) => { name = value; again(); })) : null, place];
}

function layersPart() {
  const title = (run, one) => `${layerName(run, layerOf(run, one.layer))} → ${layerName(run, layerOf(run, one.other))}`;
  const names = [...new Set(runs.flatMap((run) => run.layers_together.map((one) => title(run, one))))];
  if (!names.length) return null;
  let name = names[0];
  const [place, again] = refilled(() => sides((run) => {
    const one = run.layers_together.find((each) => title(run, each) === name);
    if (!one) return null;
    return [
      el("p", { class: "note" }, `The expert of the first layer tells ${fixed(one.information, 3)} nats of the expert of the second.`),
      el("div", { class: "panel" }, liftMap(run, one, `${layerName(run, layerOf(run, one.layer))}, expert`, `${layerName(run, layerOf(run, one.other))}, expert`) ?? strongest(one, "expert", "expert of the next layer")),
    ];
  }));
  again();
  return [sub("From a layer to the next", "Where the same head goes next: grey is chance, orange is a path that tokens take together."),
    names.length > 1 ? controls(choice("Layers", names.map((n) => [n, n]), name, (value) => { name = value; again(); })) : null, place];
}

function togetherSection() {
  const parts = [headsPart(), layersPart()];
  return explained("together", "Experts that meet",
    "How often two experts read the same token, compared with what their loads alone would give: grey is chance, and strong colours mean that experts form teams or avoid each other.",
    parts.some(Boolean) ? legend("even", LIFTS, "times as often as by chance") : null, parts);
}
