// The head of the page: what was looked at, the figures that matter, and what is wrong.

function headFigures(run) {
  const all = run.layers.map((layer) => layer.counts[0]).filter(Boolean);
  const [per] = run.activation;
  const over = (pick) => mean(all.map(pick).filter(known));
  const dead = sum(all.map((c) => c.use.dead ?? 0));
  const experts = sum(run.layers.map((layer) => layer.num_experts));
  return [
    ["Active experts", percent(per?.value), per ? [`random routing ${percent(per.random)}`, known(per.tau) ? `at tau ${short(per.tau)}` : per.rule, known(per.paper) ? `the paper has ${percent(per.paper, 2)}` : null] : [], per ? `Share of the experts whose frequency exceeds tau: ${per.rule}. The paper does not give its tau.` : ""],
    ["Evenness", percent(over((c) => c.use.entropy_share)), `random routing ${percent(over((c) => c.random.entropy_share))}`, "Entropy of the load as a share of the largest possible: 100 % when all experts read equally much."],
    ["Dead experts", `${whole(dead)} of ${whole(experts)}`, `random routing ${fixed(sum(all.map((c) => c.random.dead ?? 0)), 1)}`, "Experts that read nothing at all."],
    ["Fullest expert", times(over((c) => c.use.max_over_mean)), `random routing ${times(over((c) => c.random.max_over_mean))}`, "Load of each layer's fullest expert, in even shares; the mean over layers."],
    ["Refused", percent(over((c) => c.dropped_share)), "0 % is best", "Assignments that were wanted but refused because the expert was full."],
  ];
}

function card(run, index) {
  const s = run.summary;
  const facts = [
    ["Layers", `${plural(s.num_layers, "sparse layer")} (${s.layer_kind})`],
    ["Experts", `${whole(s.num_experts)} per layer, ${plural(s.num_heads, "head")}, ${short(s.experts_per_subtoken)} per sub-token`],
    ["Router", s.router], ["Task", s.task], ["Step", known(s.step) ? whole(s.step) : ""], ["Parameters", known(s.parameters) ? short(s.parameters) : ""],
    ["Data", s.data], ["Looked at", `${plural(s.samples, "sample")}, ${plural(s.tokens, "token")}`],
    ["Source", s.source], ...s.facts.map((fact) => [fact.name, fact.value]),
  ].filter(([, value]) => value);
  const shown = two ? 4 : 8;
  const list = (part) => el("dl", { class: "facts" }, part.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  return el("article", { class: "card" },
    two ? el("h2", { class: "whose" }, tag(index)) : null,
    el("div", { class: "figures" }, headFigures(run).map(([name, value, beside, told]) =>
      el("div", { class: "figure", title: told }, el("span", { class: "name" }, name), el("b", {}, value), [beside].flat().filter(Boolean).map((line) => el("span", { class: "beside" }, line))))),
    complaints(run),
    list(facts.slice(0, shown)),
    facts.length > shown ? el("details", { class: "numbers" }, el("summary", {}, "Everything about this run"), list(facts.slice(shown))) : null);
}

function complaints(run) {
  if (!run.complaints.length) return el("p", { class: "verdict good" }, el("span", { "aria-hidden": "true" }, "✓ "), "No layer has dead or overloaded experts that random routing would not have.");
  return el("div", { class: "verdict bad" },
    el("strong", {}, el("span", { "aria-hidden": "true" }, "! "), `${plural(run.complaints.length, "thing")} to look at`),
    el("ul", {}, run.complaints.map((sentence) => el("li", {}, sentence))));
}

function summarySection() {
  return el("section", { id: "summary", "aria-label": "Summary" }, el("div", { class: two ? "sides two" : "sides" }, runs.map(card)));
}
