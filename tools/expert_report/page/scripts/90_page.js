// The page: head, places to jump to, sections.

const SECTIONS = [
  ["Summary", summarySection], ["Which experts work", activitySection], ["How many are active", sweepSection], ["Image patches", imagesSection], ["Sentences", sentencesSection],
  ["Words", wordsSection], ["What experts are for", specialisationSection], ["Experts that meet", togetherSection], ["Over training", trainingSection], ["Router", routerSection], ["Terms", glossarySection],
];

const button = themeButton();
const sections = SECTIONS.map(([name, make]) => [name, make()]).filter(([, node]) => node);
const links = sections.map(([name, node]) => el("a", { href: `#${node.id}` }, name));

document.body.append(
  el("a", { class: "skip", href: "#summary" }, "Skip to the report"),
  el("header", { class: "top" },
    el("div", {}, el("p", { class: "kind" }, two ? "Two runs compared" : "Expert report"),
      el("h1", {}, two ? [tag(0), el("span", { class: "against" }, " against "), tag(1)] : runs[0].summary.name)),
    button),
  el("div", { class: "layout" }, el("nav", { "aria-label": "Sections" }, links), el("main", {}, sections.map(([, node]) => node))),
  tooltip, spoken);

const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    links.forEach((link) => link.toggleAttribute("aria-current", link.hash === `#${entry.target.id}`));
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const [, node] of sections) watch.observe(node);
