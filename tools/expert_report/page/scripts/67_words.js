// Words and how many experts read them.

const LISTS = [["most", "spread most"], ["least", "spread least"], ["frequent", "most frequent"], ["listed", "from the list"]];

function densityChart() {
  const given = runs.map((run, index) => [run, index]).filter(([run]) => run.words && spreads(run));
  if (!given.length) return null;
  const dashes = [null, "7 3", "2 3"];
  const series = given.flatMap(([run, index]) => run.words.groups.map((group, g) => ({
    name: ours(run, `${group.name} (${fixed(group.mean)}${known(group.standard_error) ? ` ± ${fixed(group.standard_error)}` : ""})`), dash: dashes[g % 3], colour: () => runColour(index),
    points: group.density.map((share, i) => [(run.words.edges[i] + run.words.edges[i + 1]) / 2, share]),
  })));
  const chart = new Chart({
    label: "Words by the number of different experts that read them", series, xTitle: "different experts", yText: (y) => percent(y, 0), from: 0, height: 260,
    marks: given.map(([run]) => ({ x: run.words.random, name: `${ours(run, "random routing")} ${fixed(run.words.random)}` })),
  });
  return chart.node;
}

function wordList(run, which) {
  const words = run.words?.[which];
  if (!words?.length) return null;
  if (!spreads(run)) return el("p", { class: "note" }, "Every token of this run goes to one expert in a layer, so no word can spread.");
  let at = 0;
  const [routes, again] = refilled(() => wordRoutes(run, words[at]));
  const top = Math.max(...run.words.edges);
  const buttons = words.slice(0, 24).map((word, i) => el("button", {
    type: "button", class: "row", "aria-pressed": String(i === 0),
    onclick: () => { at = i; buttons.forEach((b, j) => b.setAttribute("aria-pressed", String(j === i))); again(); },
  }, el("span", { class: "name" }, word.word, word.language ? el("small", {}, word.language) : null),
    el("span", { class: "track" }, el("i", { class: "fill", style: { width: `${100 * clamp((word.diversity - 1) / Math.max(top - 1, 1e-9), 0, 1)}%` } }),
      el("i", { class: "chance", style: { left: `${100 * clamp((run.words.random - 1) / Math.max(top - 1, 1e-9), 0, 1)}%` } })),
    el("b", {}, fixed(word.diversity)), el("small", { class: "count" }, plural(word.occurrences, "time"))));
  again();
  return el("div", { class: "split" }, el("div", { class: "wordlist", role: "group", "aria-label": "Words; press one to see its experts" }, buttons), routes);
}

function wordRoutes(run, word) {
  const layers = range(run.layers.length).filter((l) => word.routes[l]?.length);
  if (!layers.length) return null;
  const heads = Math.max(...layers.map((l) => word.routes[l].length));
  const map = new Heatmap({
    label: `Where “${word.word}” goes most often, by layer and head`, rows: layers.map((l) => layerName(run, l)), columns: expertNames(heads), rowTitle: "layer", columnTitle: "head", widest: 40, tallest: 28, lowest: 18,
    cell: (row, column) => {
      const route = word.routes[layers[row]][column];
      if (!route || route.expert < 0) return null;
      return { colour: expertColour(route.expert, run.layers[layers[row]].num_experts), alpha: 0.25 + 0.75 * route.share, text: String(route.expert), value: `${route.expert} (${percent(route.share, 0)})`,
        told: () => ({ title: `${layerName(run, layers[row])}, head ${column}`, lines: [["most often expert", String(route.expert)], ["share of its first choices", percent(route.share)]] }) };
    },
  });
  return el("div", { class: "panel" }, el("p", { class: "title" }, `Where “${word.word}” goes`, el("small", {}, "the most frequent expert; paler where it varies")), map.node, numbers("Numbers as a table", () => map.table()));
}

function wordsSection() {
  if (!runs.some((run) => run.words)) return null;
  const lists = LISTS.filter(([field]) => runs.some((run) => run.words?.[field].length));
  let which = lists[0]?.[0];
  const [place, again] = refilled(() => (which ? sides((run) => wordList(run, which), "No such words in this run.") : null));
  again();
  const listed = runs.some((run) => run.words?.groups.some((group) => group.name === "listed"));
  const missing = [...new Set(runs.flatMap((run) => run.words?.missing ?? []))];
  return explained("words", "Words and their spread",
    `How many different experts read a word's sub-tokens: random routing gives the marked number, fewer means that heads agree on an expert${listed ? ", and the paper finds that words of several meanings spread more than the rest" : ""}.`,
    densityChart(),
    lists.length ? controls(choice("Words", lists, which, (value) => { which = value; again(); })) : null, place,
    missing.length ? el("p", { class: "note" }, `Of the given list, never met here: ${missing.slice(0, 40).join(", ")}${missing.length > 40 ? ` and ${missing.length - 40} more` : ""}.`) : null);
}
