// What experts are for: how much the expert tells of what it reads, and the words it reads.

function informationPart() {
  const ways = [...new Set(runs.flatMap((run) => run.specialisation.map((s) => s.dimension)))];
  if (!ways.length) return null;
  let way = ways[0];
  const most = () => Math.max(...runs.flatMap((run) => run.specialisation.filter((s) => s.dimension === way).map((s) => Math.max(s.information, s.baseline))), 1e-9);
  const [place, again] = refilled(() => sides((run) => {
    const mine = run.specialisation.filter((s) => s.dimension === way);
    if (!mine.length) return null;
    return [
      bars(mine.map((s) => ({
        name: layerName(run, layerOf(run, s.layer)), value: s.information, chance: s.baseline,
        told: `${fixed(s.information, 4)} nats, by chance ${fixed(s.baseline, 4)}; ${percent(s.share)} of what there is to tell`,
      })), { most: most(), text: (x) => fixed(x, 3), note: "Mutual information in nats; the tick is what random groups give." }),
      numbers("Numbers as a table", () => table(["layer", "nats", "by chance", "above chance", "of what there is to tell"],
        mine.map((s) => [layerName(run, layerOf(run, s.layer)), fixed(s.information, 4), fixed(s.baseline, 4), fixed(s.corrected, 4), percent(s.share)]), `Information of expert and ${way}`)),
    ];
  }));
  again();
  return [
    sub("Does the expert tell what it reads?", "A bar no longer than its tick means that experts do not care; far beyond it, they have parted the work."),
    controls(choice("About", ways.map((name) => [name, name]), way, (value) => { way = value; again(); })), place,
  ];
}

function readingPart() {
  if (!runs.some((run) => run.experts.length)) return null;
  const names = [...new Set(runs.flatMap((run) => run.experts.map((e) => layerName(run, layerOf(run, e.layer)))))];
  let name = names[0];
  const [place, again] = refilled(() => sides((run) => {
    const mine = run.experts.filter((e) => e.words.length && layerName(run, layerOf(run, e.layer)) === name);
    if (!mine.length) return null;
    const experts = run.layers[layerOf(run, mine[0].layer)].num_experts;
    return el("div", { class: "readings", tabindex: 0, role: "region", "aria-label": `Words of the experts of ${name}${two ? `, ${run.summary.name}` : ""}` }, mine.map((e) => el("div", { class: "reading" },
      expertChip(e.expert, experts),
      el("span", {}, e.words.map((w) => el("span", { class: "word", title: `${plural(w.count, "time")}, ${times(w.lift)} as often as this layer's experts on average` }, w.word, el("small", {}, times(w.lift))))))));
  }));
  again();
  return [
    sub("The words an expert reads", "Those most typical of it, and how many times more often it reads them than the average expert of its layer."),
    controls(choice("Layer", names.map((n) => [n, n]), name, (value) => { name = value; again(); })), place,
  ];
}

function specialisationSection() {
  return explained("specialisation", "What experts are for",
    "How much knowing the expert tells of what it read, such as its modality or language: zero above chance means that experts are interchangeable, more means that they specialise, which is often wanted as long as all of them work.",
    informationPart(), readingPart());
}
