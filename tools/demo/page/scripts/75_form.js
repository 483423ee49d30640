// What is asked: places for pictures, a text, a button.

class Place {
  // A picture to be given: dropped, chosen, pasted, or an example.
  constructor(label, about, changed, complain) {
    Object.assign(this, { about, changed, complain, file: null });
    const id = freshId("file");
    this.input = el("input", { type: "file", id, class: "chooser", accept: "image/jpeg,image/png,image/webp", onchange: () => { if (this.input.files[0]) this.take(this.input.files[0]); } });
    this.shown = el("img", { alt: "", hidden: true });
    this.hint = el("span", { class: "hint" }, "Drop a picture here, or paste one");
    this.remove = el("button", { type: "button", class: "remove", hidden: true, "aria-label": `Remove: ${label}`, onclick: () => { this.empty(); this.input.focus(); } }, "Remove");
    this.node = el("div", { class: "drop", ondragover: (event) => this.over(event), ondragenter: (event) => this.over(event), ondragleave: () => this.node.classList.remove("over"), ondrop: (event) => this.drop(event) },
      this.shown, this.hint, el("div", { class: "picking" }, this.input, el("label", { for: id, class: "button" }, el("span", { class: "unseen" }, `${label}: `), "Choose a file"), this.remove));
  }

  over(event) {
    event.preventDefault();
    this.node.classList.add("over");
  }

  drop(event) {
    event.preventDefault();
    this.node.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) this.take(file);
    else this.complain("What was dropped is not a file: save the picture first, then drop the file.");
  }

  take(file) {
    if (file.size > this.about.most_bytes) {
      this.input.value = "";
      return this.complain(`The picture has ${(file.size / 1e6).toFixed(1)} MB; ${this.about.too_large}.`);
    }
    this.empty();
    this.file = file;
    this.shown.src = URL.createObjectURL(file);
    this.shown.alt = file.name ? `Your picture ${file.name}` : "Your picture";
    this.shown.onload = () => this.shown.classList.toggle("coarse", this.shown.naturalWidth <= 200);
    this.shown.hidden = this.remove.hidden = false;
    this.hint.hidden = true;
    this.changed();
  }

  empty() {
    if (this.shown.src) URL.revokeObjectURL(this.shown.src);
    this.shown.removeAttribute("src");
    this.shown.hidden = this.remove.hidden = true;
    this.hint.hidden = false;
    this.file = null;
    this.input.value = "";
    this.changed();
  }
}

class AskingForm {
  // One form for each mode of the model. answered(answer, milliseconds) is called with what came back, edited()
  // when the form no longer asks that.
  constructor(about, answered, edited) {
    Object.assign(this, { about, answered, edited, mode: about.modes[0], busy: false });
    this.status = el("p", { class: "status", role: "status" });
    this.error = el("p", { class: "error", role: "alert", hidden: true });
    [this.fields, this.draw] = refilled(() => this.made());
    const modes = about.modes.length > 1
      ? choice("What to do", about.modes.map((mode) => [mode.name, mode.title]), this.mode.name, (name) => { this.mode = about.modes.find((mode) => mode.name === name); this.clear(); this.draw(); }) : null;
    this.node = el("form", { class: "card ask", onsubmit: (event) => { event.preventDefault(); this.submit(); }, oninput: () => this.edited(), "aria-label": "Ask the model" }, modes, this.fields, this.error);
    this.draw();
    addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
      const place = this.places.find((one) => !one.file) ?? this.places[0];
      if (file && place) { event.preventDefault(); place.take(file); }
    });
    // A picture that misses its place must not replace the page.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  }

  made() {
    const { mode, about } = this;
    const labels = mode.images === 2 ? ["Left picture", "Right picture"] : ["Picture"];
    this.places = range(mode.images).map((i) => new Place(labels[i], about, () => this.clear(), (sentence) => this.complain(sentence)));
    const id = freshId("text");
    const given = { id, name: "text", class: "text", autocomplete: "off", spellcheck: "true", "aria-describedby": `${id}-hint` };
    this.text = mode.text ? el(mode.lines ? "textarea" : "input", mode.lines ? { ...given, rows: 5 } : { ...given, type: "text" }) : null;
    this.button = el("button", { type: "submit", class: "main" }, mode.button);
    this.beams = mode.beams;
    return [
      mode.images ? el("div", { class: mode.images === 2 ? "places two" : "places" }, this.places.map((place, i) => el("div", {}, mode.images === 2 ? el("p", { class: "label" }, labels[i]) : null, place.node))) : null,
      this.text ? el("div", { class: "field" }, el("label", { for: id, class: "label" }, mode.text, mode.text_optional ? el("small", {}, "optional") : null), this.text,
        el("small", { id: `${id}-hint`, class: "hint" }, [mode.hint, about.max_tokens ? `${mode.lines ? "Each up" : "Up"} to ${about.max_tokens} tokens.` : ""].filter(Boolean).join(" "))) : null,
      mode.beams ? choice("Beams", [...new Set([1, 3, 5, mode.beams])].sort((a, b) => a - b).map((n) => [String(n), String(n)]), String(mode.beams), (n) => { this.beams = +n; }) : null,
      el("div", { class: "doing" }, this.button,
        about.examples ? el("button", { type: "button", class: "example", onclick: () => this.example() }, "Example") : null, this.status),
    ].filter(Boolean);
  }

  complain(sentence) {
    this.error.textContent = sentence;
    this.error.hidden = false;
    this.status.textContent = "";
  }

  clear() {
    this.edited();
    this.error.hidden = true;
    this.error.textContent = "";
  }

  async example() {
    this.clear();
    try {
      const { images, text } = await asked("/example");
      this.places.forEach((place, i) => place.take(new File([bytesOf(images[i])], "example.png", { type: "image/png" })));
      if (this.text && text && !(this.mode.lines && this.text.value)) this.text.value = text;
      this.button.focus();
    } catch (error) {
      this.complain(error.message);
    }
  }

  async submit() {
    if (this.busy) return;
    this.clear();
    this.busy = true;
    this.node.setAttribute("aria-busy", "true");
    this.button.setAttribute("aria-disabled", "true");
    const waiting = setTimeout(() => { this.status.textContent = "Asking…"; }, 250);
    try {
      const images = await Promise.all(this.places.filter((place) => place.file).map((place) => base64Of(place.file)));
      const request = { mode: this.mode.name, images, text: this.text?.value ?? "" };
      if (this.beams !== this.mode.beams) request.beams = this.beams; // without, the model's own number
      const begin = performance.now();
      const answer = await asked("/ask", request);
      const took = performance.now() - begin;
      this.status.textContent = "";
      this.answered(answer, took);
    } catch (error) {
      this.complain(error.message);
    } finally {
      clearTimeout(waiting);
      if (this.status.textContent === "Asking…") this.status.textContent = "";
      this.busy = false;
      this.node.removeAttribute("aria-busy");
      this.button.removeAttribute("aria-disabled");
    }
  }
}
