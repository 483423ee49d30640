// Which experts read it: the picture and the words of the answer, by one layer and one head.

function expertsCard(about) {
  if (!about.layers.length) {
    return { node: el("section", { class: "card experts", "aria-label": "Experts" }, el("h2", {}, "Experts"), el("p", { class: "note" }, "This network is dense: all of its layers read everything, so there are no experts to show.")), show: () => {}, choose: () => {} };
  }
  const run = { summary: { name: about.name, num_experts: about.layers[0].num_experts }, layers: about.layers, images: [], sentences: [], patches: null, words: null };
  runs.push(run);
  const heads = Math.max(...about.layers.map((layer) => layer.num_heads));
  const names = layerNames(run);
  picture.layer = reading.layer = names.at(-1);
  const set = (name, value) => {
    picture[name] = reading[name] = value;
    picture.expert = null;
    again();
  };
  const pick = (label, all, now, changed) => (all.length > 1 ? choice(label, all.map((one) => [one.key, first(one.key)]), now, changed) : null);
  const [place, again] = refilled(() => {
    if (!run.images.length && !run.sentences.length) return el("p", { class: "note" }, "Ask something: every patch and word is then coloured by the expert that read it.");
    return [
      run.images.length ? el("div", { class: "read" }, el("h3", {}, "Patches"), run.images.length > 1 ? thumbs() : null, overlay(run, 0, false)) : null,
      run.sentences.length ? el("div", { class: "read" }, el("h3", {}, "Words"),
        pick("Text", run.sentences, reading.key, (key) => { reading.key = key; begin(); again(); }), sentenceSide(run)) : null,
    ];
  });
  const begin = () => {
    const sentence = run.sentences.find((one) => one.key === reading.key);
    reading.word = sentence ? Math.max(0, wordsOf(sentence).findIndex((word) => word.word >= 0)) : 0;
  };
  const thumbs = () => el("div", { class: "thumbs", role: "group", "aria-label": "Pictures" }, run.images.map((image) => el("button", {
    type: "button", "aria-pressed": String(image.key === picture.key), "aria-label": image.key, title: image.key, onclick: () => { picture.key = image.key; picture.expert = null; again(); },
  }, el("img", { src: `data:image/png;base64,${image.png}`, alt: "" }))));
  const show = (answer) => {
    Object.assign(run, { images: answer.images, sentences: answer.sentences });
    Object.assign(picture, { key: run.images[0]?.key ?? null, expert: null });
    reading.key = run.sentences[0]?.key ?? null;
    begin();
    again();
  };
  const choose = (key) => {
    if (run.images.some((one) => one.key === key)) Object.assign(picture, { key, expert: null });
    if (run.sentences.some((one) => one.key === key)) { reading.key = key; begin(); }
    again();
  };
  again();
  return {
    show, choose,
    node: el("section", { class: "card experts", "aria-labelledby": "experts-title" },
      el("h2", { id: "experts-title" }, "Which experts read it"),
      el("p", { class: "note" }, `Coloured and numbered by expert. ${heads > 1 ? "A token is cut into one part for each head; choose which part is coloured. " : ""}Point at a patch or a word, or use the arrow keys, to see all its experts and their weights.`),
      controls(
        names.length > 1 ? choice("Layer", names.map((name) => [name, name]), names.at(-1), (value) => set("layer", value)) : null,
        heads > 1 ? choice("Head", range(heads).map((h) => [String(h), String(h)]), "0", (value) => set("head", +value)) : null,
        slider("Colours", range(11).map((i) => `${10 * i} %`), Math.round(10 * picture.show), (value) => { picture.show = value / 10; again(); })),
      place),
  };
}
