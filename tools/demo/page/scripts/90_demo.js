// The page: ask on the left, answers below, experts on the right.

const TITLES = { VQA: "Ask about a picture", Captioning: "Describe a picture", Retrieval: "Search by meaning", ImageClassification: "Name a picture", NLVR2: "True of two pictures?", MaskedPretraining: "Fill in words" };

async function start() {
  const button = themeButton();
  const kind = el("p", { class: "kind" }, "Try a model");
  const title = el("h1", {}, "…");
  const main = el("main", { id: "main" });
  document.body.append(el("header", { class: "top" }, el("div", {}, kind, title), button), main, tooltip, spoken);
  let about;
  try {
    about = await asked("/about");
  } catch (error) {
    main.append(el("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  title.textContent = TITLES[about.task] ?? about.task;
  kind.textContent = `${about.name}, ${about.task}`;
  document.title = `${title.textContent} – ${about.name}`;
  const experts = expertsCard(about);
  let last = null; // the answer that is shown, and how long it took
  const [answers, again] = refilled(() => (last ? answerCard(...last, experts.choose) : null));
  const form = new AskingForm(about, (answer, took) => {
    last = [answer, took];
    again();
    experts.show(answer);
    main.classList.remove("stale");
    spoken.textContent = inWords(answer, took);
  }, () => main.classList.toggle("stale", last !== null));
  main.append(el("div", { class: "asking" }, form.node, answers), experts.node);
}

start();
