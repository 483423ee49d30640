// Example images with a colour on every patch: the expert that read it, or how many did.

const picture = { key: null, by: "expert", layer: null, head: 0, step: null, expert: null, show: 0.65 };

function imageLayers(run, image) {
  return range(run.layers.length).filter((i) => image.experts[i]?.length);
}

function patchCell(run, image, layer, head) {
  const heads = run.layers[layer]?.num_heads ?? 1;
  const experts = run.layers[layer]?.num_experts ?? run.summary.num_experts;
  const mine = Math.min(head, heads - 1);
  const step = picture.step === null ? null : image.steps[Math.min(picture.step, image.steps.length - 1)];
  const levels = patchLevels(run, image, layer);
  return (row, column) => {
    const patch = row * image.columns + column;
    const chosen = image.experts[layer]?.[patch];
    const read = picture.layer === "mean" ? step?.diversity[patch] : image.diversity[layer]?.[patch];
    if (picture.by === "expert" && !chosen) return null;
    if (picture.by === "diversity" && !known(read)) return null;
    const expert = chosen?.[mine]?.[0] ?? -1;
    const faded = picture.by === "expert" && picture.expert !== null && !(chosen[mine].includes(picture.expert));
    return {
      colour: picture.by === "expert" ? (expert < 0 ? [128, 128, 128] : expertColour(expert, experts)) : scale("amount", (read - levels[0]) / (levels[1] - levels[0])),
      cross: picture.by === "expert" && expert < 0, text: picture.by === "expert" ? String(expert) : short(+read.toFixed(1)), alpha: faded ? 0.1 : picture.show,
      value: picture.by === "expert" ? String(expert) : short(read), told: () => patchTold(run, image, layer, row, column, read),
    };
  };
}

function patchTold(run, image, layer, row, column, read) {
  const patch = row * image.columns + column;
  const chosen = picture.layer === "mean" ? [] : image.experts[layer]?.[patch] ?? [];
  const weights = image.weights?.[layer]?.[patch]; // not every page has them
  const shown = chosen.slice(0, 12).map((ids, head) => [chosen.length > 1 ? `head ${head}` : "expert", carried(ids, weights?.[head])]);
  return {
    title: `patch in row ${row + 1}, column ${column + 1}`,
    lines: [...shown, ...(chosen.length > 12 ? [`and ${chosen.length - 12} more heads`] : []), ["different experts", short(read)], ["edges in the patch", fixed(image.energy[patch], 3)]],
  };
}

function patchLevels(run, image, layer) {
  // The ends of the scale of diversity: one expert, and as many as a token can reach.
  const of = picture.layer === "mean" ? imageLayers(run, image) : [layer];
  const reach = mean(of.map((i) => Math.min(run.layers[i].num_heads * run.layers[i].choices, run.layers[i].num_experts)));
  return [1, Math.max(reach, 1.001)];
}

function overlay(run, _index, besideItself = !two) {
  const image = run.images.find((one) => one.key === picture.key);
  if (!image) return null;
  const passed = imageLayers(run, image);
  if (!passed.length) return el("p", { class: "note" }, "No sparse layer of this run reads images.");
  const layer = passed.find((i) => layerName(run, i) === picture.layer) ?? passed[0];
  const photo = new Image();
  const stretch = (image.height / image.rows) / (image.width / image.columns); // of a patch, in the picture as it was given
  const map = new Heatmap({
    label: `Patches of an image by ${picture.by}${two ? `, ${run.summary.name}` : ""}`, rows: expertNames(image.rows), columns: expertNames(image.columns), bare: true, square: true, stretch,
    widest: 340 / Math.max(image.columns, image.rows * stretch), backdrop: photo, cell: patchCell(run, image, layer, picture.head), rowTitle: "row",
  });
  photo.onload = () => map.redraw();
  photo.src = `data:image/png;base64,${image.png}`;
  const plainPicture = !besideItself ? null : el("img", { class: image.width > 200 ? "photo" : "photo coarse", src: photo.src, alt: image.text || "the image alone", style: { "aspect-ratio": `${image.width} / ${image.height}` } });
  const [key, again] = refilled(() => (picture.by === "expert" ? expertKey(run, image, layer, () => { again(); map.redraw(); }) : diversityKey(run, image, layer)));
  again();
  const heads = run.layers[layer].num_heads;
  return el("div", { class: "overlay" },
    el("div", { class: "pictures" }, plainPicture, map.node,
    el("div", { class: "aside" }, key, el("p", { class: "note" }, picture.layer === "mean" ? "Mean over the layers." : `${first(layerName(run, layer))}${picture.by === "expert" ? `, ${heads === 1 ? "its only head" : `head ${Math.min(picture.head, heads - 1)} of ${heads}; press an expert to see its patches alone`}` : ""}.`),
    numbers("Numbers as a table", () => map.table()))));
}

function expertKey(run, image, layer, changed) {
  const head = Math.min(picture.head, run.layers[layer].num_heads - 1);
  const count = new Map();
  for (const patch of image.experts[layer]) for (const id of patch[head].slice(0, 1)) count.set(id, (count.get(id) ?? 0) + 1);
  return el("div", { class: "chips", role: "group", "aria-label": "Experts; press one to see its patches alone" },
    [...count].sort(([, a], [, b]) => b - a).map(([id, n]) => el("button", {
      type: "button", class: "bare", "aria-pressed": String(picture.expert === id), "aria-label": id < 0 ? `refused, ${plural(n, "patch", "patches")}` : `expert ${id}, ${plural(n, "patch", "patches")}`,
      onclick: () => { picture.expert = picture.expert === id ? null : id; changed(); },
    }, id < 0 ? el("span", { class: "chip none" }, "refused", el("small", {}, whole(n))) : expertChip(id, run.layers[layer].num_experts, whole(n)))));
}

function diversityKey(run, image, layer) {
  const [low, high] = patchLevels(run, image, layer);
  return legend("amount", [[0, short(low)], [1, short(+high.toFixed(2))]], `different experts per patch${run.patches ? `; random routing gives ${fixed(run.patches.random)}` : ""}`);
}

function imagesPart() {
  const keys = [...new Set(runs.flatMap((run) => run.images.map((image) => image.key)))];
  if (!keys.length) return null;
  const find = (key) => runs.flatMap((run) => run.images).find((image) => image.key === key);
  picture.key = keys[0];
  const layers = [...new Set(runs.flatMap((run) => run.images.flatMap((image) => imageLayers(run, image).map((i) => layerName(run, i)))))];
  picture.layer = layers.at(-1) ?? null;
  const heads = Math.max(1, ...runs.flatMap((run) => run.layers.map((layer) => layer.num_heads)));
  const [place, again] = refilled(() => sides(overlay, "This image is not in this run's report."));
  const set = (name) => (value) => { picture[name] = value; if (name !== "expert") picture.expert = null; draw(); };
  const [panel, draw] = refilled(() => {
    const steps = (runs.flatMap((run) => run.images).find((image) => image.key === picture.key && image.steps.length > 1)?.steps ?? []).map((s) => `step ${whole(s.step)}`);
    if (picture.by === "expert" && picture.layer === "mean") picture.layer = layers.at(-1);
    if (picture.step === null || picture.step >= steps.length) picture.step = Math.max(steps.length - 1, 0);
    again();
    return controls(
      choice("Colour by", [["expert", "expert"], ["diversity", "diversity"]], picture.by, set("by")),
      layers.length > 1 || picture.by === "diversity" ? choice("Layer", [...layers.map((l) => [l, l]), ...(picture.by === "diversity" ? [["mean", "mean of all"]] : [])], picture.layer, set("layer")) : null,
      picture.by === "expert" && heads > 1 ? choice("Head", range(heads).map((h) => [String(h), String(h)]), String(picture.head), (value) => set("head")(+value)) : null,
      picture.by === "diversity" && picture.layer === "mean" && steps.length > 1 ? slider("Checkpoint", steps, picture.step, (value) => { picture.step = value; again(); }) : null,
      slider("Colours", range(11).map((i) => `${10 * i} %`), Math.round(10 * picture.show), (value) => { picture.show = value / 10; again(); }));
  });
  const thumbs = el("div", { class: "thumbs", role: "group", "aria-label": "Images" }, keys.map((key, i) => {
    const image = find(key);
    const button = el("button", { type: "button", "aria-pressed": String(key === picture.key), title: image.text || key, "aria-label": `image ${i + 1}: ${image.text || key}`, onclick: () => {
      for (const other of thumbs.children) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", "true");
      set("key")(key);
      said();
    } }, el("img", { src: `data:image/png;base64,${image.png}`, alt: "" }));
    return button;
  }));
  const caption = el("div", { class: "caption" });
  const said = () => {
    const image = find(picture.key);
    caption.replaceChildren(
      two ? el("img", { class: image.width > 200 ? "" : "coarse", src: `data:image/png;base64,${image.png}`, alt: image.text || "the image alone" }) : "",
      el("p", {}, image.text ? `“${image.text}”` : ""));
  };
  said();
  draw();
  return [thumbs, caption, panel, place];
}

function patchesPart() {
  const given = runs.map((run, index) => [run, index]).filter(([run]) => run.patches?.steps.length && spreads(run));
  if (!given.length) return null;
  const levels = given.map(([run], i) => ({ y: run.patches.random, name: ours(run, "random routing"), late: i > 0 }));
  const charts = [];
  const lines = [["mean", "all patches", null], ["edge", "with edges", "7 3"], ["flat", "flat", "2 3"]];
  if (given.some(([run]) => run.patches.steps.length > 1)) charts.push(small("Over training", "different experts per patch", new Chart({
    label: "Different experts per patch over training", xTitle: "step", height: 230,
    series: given.flatMap(([run, index]) => lines.map(([field, name, dash]) => ({ name: ours(run, name), dash, colour: () => runColour(index), points: run.patches.steps.map((s) => [s.step, s[field]]) }))),
    levels,
  })));
  charts.push(small("From flat patches to those with the most edges", "tenths of all patches", new Chart({
    label: "Different experts per patch by its edges", xTitle: "tenth", height: 230,
    series: given.map(([run, index]) => ({ name: run.summary.name, colour: () => runColour(index), points: run.patches.steps.at(-1).by_energy.map((y, i) => [i + 1, y]) })),
    levels,
  })));
  const words = runs.filter((run) => run.patches?.steps.length).map((run) => {
    if (!spreads(run)) return el("p", { class: "note" }, `${run.summary.name}: every patch goes to one expert in a layer, so there is no diversity to see.`);
    const last = run.patches.steps.at(-1);
    return el("p", { class: "note" }, `${run.summary.name}: ${fixed(last.mean)} different experts per patch, ${fixed(last.edge)} where there are edges, ${fixed(last.flat)} where it is flat; rank correlation with the patch's edges ${fixed(last.correlation)}.`);
  });
  return [sub("All patches", "The paper sees diversity rise in textured regions and fall in flat ones as training goes on."), el("div", { class: "grid" }, charts), words];
}

function imagesSection() {
  return explained("images", "Image patches",
    "Every patch is coloured by the expert that read it, or by how many different experts did: chance is confetti, while shapes that show through mean that routing follows what is in the picture.",
    imagesPart(), patchesPart());
}
