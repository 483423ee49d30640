// What the model said: a headline, and the runners-up with their scores.

function milliseconds(ms) {
  return ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function answerCard(answer, took, choose) {
  // choose(key) shows what was read in a result, for results that have that.
  const own = new Set([...answer.images, ...answer.sentences].map((one) => one.key));
  const rows = answer.ranked.map((one) => {
    const share = known(one.score) ? percent(one.score, one.score < 0.0995 ? 1 : 0) : "";
    if (one.png) {
      return el("button", { type: "button", class: "found", "aria-label": `${one.text}, ${share}, ${one.note}; show its experts`, onclick: () => choose(one.text) },
        el("img", { src: `data:image/png;base64,${one.png}`, alt: "" }), el("b", {}, share), el("small", {}, one.note));
    }
    const name = own.has(one.text) && answer.sentences.length > 1
      ? el("button", { type: "button", class: "name link", title: "Show its experts", onclick: () => choose(one.text) }, one.text) : el("span", { class: "name" }, one.text);
    return el("li", { class: "bar" }, name,
      el("span", { class: "track", "aria-hidden": "true" }, el("i", { class: "fill", style: { width: `${100 * clamp(one.score, 0, 1)}%` } })),
      el("b", {}, share), one.note ? el("small", {}, one.note) : null);
  });
  const pictures = answer.ranked.some((one) => one.png);
  return el("section", { class: "card answer", "aria-label": "Answer" },
    answer.headline ? el("p", { class: "headline" }, answer.headline) : null,
    rows.length ? (pictures ? el("div", { class: "gallery" }, rows) : el("ol", { class: answer.ranked.some((one) => one.note) ? "bars noted" : "bars" }, rows)) : null,
    answer.about ? el("p", { class: "note" }, answer.about) : null,
    el("p", { class: "note took" }, `Answered in ${milliseconds(took)}, of which the model took ${milliseconds(1000 * answer.seconds)}.`));
}

function inWords(answer, took) {
  // The same for a screen reader.
  const best = answer.headline || (answer.ranked[0] ? `Found ${plural(answer.ranked.length, "picture")}` : "");
  const score = answer.headline && answer.ranked[0] ? `, ${percent(answer.ranked[0].score, 0)}` : "";
  return `${best}${score}. Answered in ${milliseconds(took)}.`;
}
