// Example sentences: hovering or focusing a word shows where its sub-tokens went.

const reading = { key: null, by: "expert", layer: null, head: 0, word: null };

const passes = (token, layer) => token.experts[layer]?.length > 0;

function wordsOf(sentence) {
  // Runs of tokens of one word; a special token stands alone.
  const words = [];
  sentence.tokens.forEach((token, i) => {
    const last = words.at(-1);
    if (last && token.word >= 0 && last.word === token.word) last.tokens.push([token, i]);
    else words.push({ word: token.word, tokens: [[token, i]] });
  });
  return words;
}

function sentenceSide(run) {
  const sentence = run.sentences.find((one) => one.key === reading.key);
  if (!sentence) return null;
  const words = wordsOf(sentence);
  const layers = range(run.layers.length).filter((l) => sentence.tokens.some((token) => passes(token, l)));
  const layer = layers.find((l) => layerName(run, l) === reading.layer) ?? layers[0];
  if (layer === undefined) return el("p", { class: "note" }, "No sparse layer of this run reads this sentence.");
  const { num_heads: heads, num_experts: experts, choices } = run.layers[layer];
  const head = Math.min(reading.head, heads - 1);
  const reach = Math.min(heads * choices, experts);
  const paint = [];
  const buttons = words.map((word, at) => el("button", {
    type: "button", class: word.word < 0 ? "said special" : "said", tabindex: at === reading.word ? 0 : -1, "aria-pressed": String(at === reading.word),
    onfocus: () => choose(at), onpointerenter: () => choose(at), onclick: () => choose(at), onkeydown: (event) => key(event, at),
  }, word.tokens.map(([token]) => {
    const id = passes(token, layer) ? token.experts[layer][head]?.[0] ?? -1 : null;
    const shown = id === null ? "–" : reading.by === "expert" ? (id < 0 ? "×" : String(id)) : short(token.diversity[layer]);
    const span = el("span", { class: "piece" }, el("span", {}, token.text.trim() || "␣"), el("small", {}, shown));
    paint.push(() => {
      const colour = id === null || (reading.by === "expert" && id < 0) ? null
        : reading.by === "expert" ? expertColour(id, experts) : scale("amount", reach > 1 ? (token.diversity[layer] - 1) / (reach - 1) : 0);
      span.style.background = colour ? rgb(colour) : "";
      span.style.color = colour ? inkOn(colour) : "";
    });
    return span;
  })));
  const paintAll = () => paint.forEach((one) => one());
  paintAll();
  onTheme(() => { if (buttons[0]?.isConnected) paintAll(); });
  const [detail, again] = refilled(() => whereWent(run, words[Math.min(reading.word, words.length - 1)], layers));
  const choose = (at) => {
    reading.word = at;
    buttons.forEach((button, i) => { button.tabIndex = i === at ? 0 : -1; button.setAttribute("aria-pressed", String(i === at)); });
    again();
  };
  const key = (event, at) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[clamp(to, 0, buttons.length - 1)].focus();
  };
  again();
  return el("div", {},
    el("p", { class: "sentence", role: "group", "aria-label": "Words of the sentence; arrow keys go from word to word" }, buttons),
    el("p", { class: "note" }, `${first(layerName(run, layer))}${reading.by === "expert" ? `, ${heads === 1 ? "its only head" : `head ${head} of ${heads}`}: the small number is the expert` : ": the small number counts different experts"}.`),
    detail);
}

function whereWent(run, word, layers) {
  const passed = layers.filter((l) => word.tokens.some(([token]) => passes(token, l)));
  if (!passed.length) return el("p", { class: "note" }, "No sparse layer reads this token.");
  const heads = Math.max(...passed.map((l) => run.layers[l].num_heads));
  return el("div", { class: "went" }, word.tokens.slice(0, 6).map(([token]) => {
    const map = new Heatmap({
      label: `Experts of “${token.text.trim()}” by layer and head`, rows: passed.map((l) => layerName(run, l)), columns: expertNames(heads), rowTitle: "layer", columnTitle: "head", widest: 40, tallest: 28, lowest: 18,
      cell: (row, column) => {
        const layer = passed[row];
        const ids = token.experts[layer]?.[column];
        if (!ids) return null;
        const { num_experts: experts } = run.layers[layer];
        const kept = ids.filter((id) => id >= 0);
        return {
          colour: kept.length ? expertColour(kept[0], experts) : [128, 128, 128], cross: !kept.length, text: kept.join(","), value: carried(ids),
          told: () => ({ title: `${layerName(run, layer)}, head ${column}`, lines: [[kept.length > 1 ? "experts" : "expert", carried(ids, token.weights?.[layer]?.[column])], ["different experts of the token", short(token.diversity[layer])]] }),
        };
      },
    });
    return el("div", { class: "panel" }, el("p", { class: "title" }, token.text.trim() || "␣", el("small", {}, token.token_class)), map.node);
  }));
}

function sentencesSection() {
  const all = runs.flatMap((run) => run.sentences);
  if (!all.length) return null;
  const keys = [...new Set(all.map((s) => s.key))];
  const text = (key) => {
    const sentence = all.find((s) => s.key === key);
    const spelled = sentence.tokens.filter((t) => t.word >= 0).map((t) => t.text).join("").trim() || key;
    return `${sentence.language ? `${sentence.language}: ` : ""}${spelled.length > 70 ? `${spelled.slice(0, 69)}…` : spelled}`;
  };
  reading.key = keys[0];
  const start = () => { reading.word = Math.max(0, wordsOf(all.find((s) => s.key === reading.key)).findIndex((word) => word.word >= 0)); };
  start();
  const layers = [...new Set(runs.flatMap((run) => range(run.layers.length).filter((l) => run.sentences.some((s) => s.tokens.some((t) => passes(t, l)))).map((l) => layerName(run, l))))];
  reading.layer = layers.at(-1) ?? null;
  const heads = Math.max(1, ...runs.flatMap((run) => run.layers.map((layer) => layer.num_heads)));
  const [place, again] = refilled(() => sides(sentenceSide, "This sentence is not in this run's report."));
  again();
  const id = freshId("sentence");
  const list = el("select", { id, onchange: () => { reading.key = list.value; start(); again(); } }, keys.map((key) => el("option", { value: key }, text(key))));
  return explained("sentences", "Sentences",
    "Point at a word, or step through with the arrow keys, to see the expert that each of its sub-tokens went to in every layer and head: under chance equal words would differ everywhere, while a trained router sends the same word the same way.",
    controls(
      el("div", { class: "choice wide" }, el("label", { for: id }, "Sentence"), list),
      choice("Colour by", [["expert", "expert"], ["diversity", "diversity"]], reading.by, (value) => { reading.by = value; again(); }),
      layers.length > 1 ? choice("Layer", layers.map((l) => [l, l]), reading.layer, (value) => { reading.layer = value; again(); }) : null,
      heads > 1 ? choice("Head", range(heads).map((h) => [String(h), String(h)]), "0", (value) => { reading.head = +value; again(); }) : null),
    place);
}
