// Line charts in SVG. The pointer or the arrow keys move from point to point along x.

class Chart {
  // levels' names stand above their lines or below, early or late. series: {name, points: [[x, y], ...], colour(), dash}. levels: {y, name}, dashed across the
  // chart. marks: {x, name}, dashed from top to bottom.
  // stops: the x that can be chosen and that the table lists, if not every point.
  constructor({ label, series, levels = [], marks = [], stops = null, log = false, from, to, xTitle, yTitle = "", xText = short, yText = short, height = 240 }) {
    Object.assign(this, { label, levels, marks, log, from, to, xTitle, yTitle, xText, yText, height });
    this.series = series.map((s) => ({ ...s, points: s.points.filter(([x, y]) => known(x) && known(y) && !(log && x <= 0)).sort(([a], [b]) => a - b) })).filter((s) => s.points.length);
    this.series.forEach((s) => { s.at = new Map(s.points); });
    this.xs = [...new Set(stops ?? this.series.flatMap((s) => s.points.map(([x]) => x)))].sort((a, b) => a - b);
    this.at = null;
    this.svg = el("svg", {
      tabindex: 0, role: "img", "aria-roledescription": "line chart", "aria-label": `${label}. Left and right arrow keys move along the lines.`,
      onpointermove: (event) => this.point(event), onpointerdown: (event) => this.point(event),
      onpointerleave: () => this.leave(), onblur: () => this.leave(), onkeydown: (event) => this.key(event),
      onfocus: () => { if (this.svg.matches(":focus-visible")) this.move(this.at ?? 0); },
    });
    this.node = el("figure", { class: "chart" },
      this.series.length > 1 ? el("div", { class: "keys" }, this.series.map((s) => el("span", {}, this.swatch(s), s.name))) : null,
      this.svg, numbers("Numbers as a table", () => this.table()));
    this.redraw = redrawing(this.node, (width) => this.draw(width));
  }

  swatch(s) {
    const line = el("line", { x1: 0, x2: 22, y1: 5, y2: 5, "stroke-width": 2.5, "stroke-dasharray": s.dash ?? null });
    const paint = () => line.setAttribute("stroke", s.colour());
    paint();
    onTheme(paint);
    return el("svg", { width: 22, height: 10, "aria-hidden": "true" }, line);
  }

  draw(width) {
    const [left, right, top, bottom] = [52, 14, 12 + 16 * this.marks.length, 40];
    this.top = top;
    const ys = [...this.series.flatMap((s) => s.points.map(([, y]) => y)), ...this.levels.map((l) => l.y)];
    let [low, high] = [this.from ?? Math.min(...ys), this.to ?? Math.max(...ys)];
    if (!(high > low)) [low, high] = low > 0 ? [low / 2, 1.5 * low] : [low, low + 1];
    const yTicks = ticks(low, high, this.height < 200 ? 4 : 5);
    if (this.from === undefined) low = Math.min(low, yTicks[0]);
    if (this.to === undefined) high = Math.max(high, yTicks.at(-1));
    const bend = this.log ? Math.log10 : (x) => x;
    const reach = [...this.series.flatMap((s) => s.points.map(([x]) => x)), ...this.marks.map((m) => m.x)];
    let [first, last] = [bend(Math.min(...reach)), bend(Math.max(...reach))];
    if (!(last > first)) [first, last] = [first - 0.5, last + 0.5];
    this.X = (x) => left + ((bend(x) - first) / (last - first)) * (width - left - right);
    this.Y = (y) => top + (1 - (y - low) / (high - low)) * (this.height - top - bottom);
    const xTicks = this.log ? logTicks(first, last) : ticks(first, last, Math.max(2, Math.floor(width / 90))).filter((x) => x >= first - 1e-9 && x <= last + 1e-9);
    const [l, r, t, b] = [left, width - right, top, this.height - bottom];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", this.height);
    this.svg.replaceChildren(
      ...yTicks.filter((y) => y >= low && y <= high + 1e-9).map((y) => el("g", {},
        el("line", { class: "grid", x1: l, x2: r, y1: this.Y(y), y2: this.Y(y) }),
        el("text", { x: l - 8, y: this.Y(y), "text-anchor": "end", dy: "0.32em" }, this.yText(y)))),
      ...xTicks.map((x) => el("text", { x: this.X(x), y: b + 18, "text-anchor": "middle" }, this.xText(x))),
      el("text", { class: "axis", x: (l + r) / 2, y: this.height - 5, "text-anchor": "middle" }, this.xTitle),
      ...this.levels.map(({ y }) => el("line", { class: "level", x1: l, x2: r, y1: this.Y(y), y2: this.Y(y) })),
      ...this.marks.map(({ x }, i) => el("line", { class: "level", x1: this.X(x), x2: this.X(x), y1: 16 * i + 4, y2: b })),
      ...this.series.map((s) => this.line(s)),
      ...this.levels.map(({ y, name, below, late }) => el("text", { class: "named", x: late ? r - 4 : l + 6, y: this.Y(y) + (below ? 15 : -5), "text-anchor": late ? "end" : "start" }, name)),
      ...this.marks.map(({ x, name }, i) => {
        const late = this.X(x) > (l + r) / 2;
        return el("text", { class: "named", x: this.X(x) + (late ? -6 : 6), y: 16 * i + 13, "text-anchor": late ? "end" : "start" }, name);
      }),
      (this.cursor = el("g", { class: "cursor" })));
    if (this.at !== null) this.mark();
  }

  line(s) {
    const points = s.points.map(([x, y]) => `${this.X(x).toFixed(1)},${this.Y(y).toFixed(1)}`);
    const dots = s.points.length <= 24 && !s.dash ? s.points.map(([x, y]) => el("circle", { cx: this.X(x), cy: this.Y(y), r: 2.6, fill: s.colour() })) : [];
    return el("g", {}, el("polyline", { points: points.join(" "), fill: "none", stroke: s.colour(), "stroke-width": 2.2, "stroke-dasharray": s.dash ?? null, "stroke-linejoin": "round" }), dots);
  }

  mark() {
    const x = this.X(this.xs[this.at]);
    const found = this.series.filter((s) => s.at.has(this.xs[this.at])).map((s) => [s, s.at.get(this.xs[this.at])]);
    this.cursor.replaceChildren(
      el("line", { x1: x, x2: x, y1: this.top, y2: this.height - 40 }),
      ...found.map(([s, y]) => el("circle", { cx: x, cy: this.Y(y), r: 4.5, fill: s.colour() })));
    return { x, y: Math.min(...found.map(([, y]) => this.Y(y))), found };
  }

  move(at, aloud = true) {
    if (!this.xs.length) return;
    this.at = at;
    const { x, y, found } = this.mark();
    tell({ title: `${this.xTitle} ${this.xText(this.xs[at])}`, lines: found.map(([s, value]) => [s.name, this.yText(value), s.colour()]) },
      boxIn(this.svg, x - 4, y - 6, 8, 12), aloud);
  }

  point(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    let best = 0;
    this.xs.forEach((value, i) => { if (Math.abs(this.X(value) - x) < Math.abs(this.X(this.xs[best]) - x)) best = i; });
    this.move(best, false);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.move(clamp((this.at ?? 0) + step, 0, this.xs.length - 1));
  }

  leave() {
    this.at = null;
    this.cursor?.replaceChildren();
    hush();
  }

  table() {
    return table([this.xTitle, ...this.series.map((s) => s.name)], this.xs.map((x) =>
      [this.xText(x), ...this.series.map((s) => (s.at.has(x) ? this.yText(s.at.get(x)) : "–"))]), this.label);
  }
}

function ticks(low, high, about) {
  // Round numbers that span a range.
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9);
  return range(Math.ceil(high / step - 1e-9) - first + 1).map((i) => +((first + i) * step).toPrecision(12));
}

function logTicks(first, last) {
  const powers = range(Math.ceil(last) - Math.floor(first) + 1).map((i) => 10 ** (Math.floor(first) + i));
  return powers.filter((x) => Math.log10(x) >= first - 1e-9 && Math.log10(x) <= last + 1e-9);
}

function bars(rows, { most, text, note } = {}) {
  // Horizontal bars: {name, value, chance, colour(), told}. A tick shows what chance would give.
  const top = most ?? Math.max(...rows.flatMap((r) => [r.value, r.chance ?? 0]).filter(known), 1e-12);
  return el("div", { class: "bars" }, rows.map((row) => {
    const fill = el("i", { class: "fill", style: { width: `${100 * clamp((row.value ?? 0) / top, 0, 1)}%` } });
    const paint = () => { fill.style.background = row.colour ? row.colour() : css("--accent"); };
    paint();
    onTheme(paint);
    return el("div", { class: "bar", title: row.told ?? null },
      el("span", { class: "name" }, row.name),
      el("span", { class: "track" }, fill, known(row.chance) ? el("i", { class: "chance", style: { left: `${100 * clamp(row.chance / top, 0, 1)}%` }, title: `chance: ${text(row.chance)}` }) : null),
      el("b", {}, text(row.value)));
  }), note ? el("p", { class: "note" }, note) : null);
}
