// The router's own metrics, and what the words on this page mean.

function routerSection() {
  const columns = ["Layer", "Indecision", "Balance loss", "z-loss", "Refused", "Choice", "Carried out", "Unused experts", "On the fullest fifth", "On the emptiest fifth"];
  const rows = (run) => run.gates.flatMap((gate) => {
    const head = [layerName(run, layerOf(run, gate.layer)), percent(gate.entropy_share), fixed(gate.balance, 3), short(gate.z_loss), percent(gate.dropped_share)];
    if (!gate.choices.length) return [[...head, "–", "–", "–", "–", "–"]];
    return gate.choices.map((c, i) => [...(i ? [head[0], "", "", "", ""] : head), c.choice ? String(c.choice) : "any", percent(c.carried_share), whole(c.unused), percent(c.top), percent(c.bottom)]);
  });
  if (!runs.some((run) => run.gates.length)) return null;
  return explained("router", "The router's own figures",
    "Indecision is the entropy of a token's distribution over experts (100 % has learned nothing, near 0 % is sure), the balance loss is 1 when even, and a fifth of the experts should hold a fifth of the tokens.",
    runs.map((run, index) => (run.gates.length ? [two ? el("div", { class: "whose" }, tag(index)) : null, table(columns, rows(run), `Metrics of the gate by layer${two ? `, ${run.summary.name}` : ""}`)] : null)));
}

const GLOSSARY = [
  ["Expert", "one of several feed-forward nets of a layer; a router sends every token to a few of them."],
  ["Sub-token", "a multi-head layer cuts a token into as many parts as it has heads and routes each on its own; a plain sparse layer has one part."],
  ["Even share", "what an expert would read if all of a layer read equally much."],
  ["Tau", "the frequency above which an expert counts as active; here half an even share unless the run set another."],
  ["Random routing", "every assignment goes to an expert drawn uniformly; with few tokens this is not even either, so figures stand beside it."],
  ["Diversity", "how many different experts read the sub-tokens of one token, from 1 to heads times choices."],
  ["Refused", "an assignment that was not carried out because the expert was full."],
];

function lackingLine() {
  const parts = [
    ["curves of training", (run) => run.curves.length], ["experts over training", (run) => run.history.length], ["words", (run) => run.words], ["sentences", (run) => run.sentences.length],
    ["images", (run) => run.images.length], ["specialisation", (run) => run.specialisation.length], ["heads that meet", (run) => run.heads_together.length],
  ].filter(([, has]) => !runs.some(has)).map(([name]) => name);
  return parts.length ? el("p", { class: "note" }, `Not in this report, because the data or the network has none: ${parts.join(", ")}.`) : null;
}

function glossarySection() {
  return explained("terms", "Words on this page", "Definitions follow arXiv 2404.15045 where it gives them.",
    el("dl", { class: "glossary" }, GLOSSARY.map(([term, meaning]) => el("div", {}, el("dt", {}, term), el("dd", {}, meaning)))), lackingLine());
}
