// A heatmap on a canvas: thousands of cells stay fluid. The pointer or the arrow keys choose a cell,
// which is then told; every heatmap has its numbers as a table too.

const fontOf = (size) => `${size}px ${css("--sans")}`;

class Heatmap {
  // rows, columns: names. cell(row, column): null, or {colour: [r, g, b], text, cross, value, told()},
  // where told gives the title and lines of the tooltip.
  // A cell may have an alpha. square: cells as tall as wide, times stretch. bare: without names. backdrop: an image
  // behind the cells.
  constructor({ label, rows, columns, cell, square = false, stretch = 1, bare = false, backdrop = null, rowTitle = "", columnTitle = "", tallest = 34, lowest = 9, widest = 72, most = 380 }) {
    Object.assign(this, { label, rows, columns, cell, square, stretch, bare, backdrop, rowTitle, columnTitle, tallest, lowest, widest, most });
    this.at = null;
    this.canvas = el("canvas", {
      tabindex: 0, role: "img", "aria-roledescription": "heatmap",
      "aria-label": `${label}. Arrow keys move from cell to cell.`,
      onpointermove: (event) => this.point(event), onpointerdown: (event) => this.point(event),
      onpointerleave: () => this.leave(), onkeydown: (event) => this.key(event),
      onfocus: () => { if (this.canvas.matches(":focus-visible")) this.move(this.at ?? [0, 0]); }, onblur: () => this.leave(),
    });
    this.frame = el("div", { class: "frame", hidden: true });
    this.node = el("div", { class: "heatmap" }, this.canvas, this.frame);
    this.redraw = redrawing(this.node, (width) => this.draw(width));
  }

  measure(width) {
    const pen = this.canvas.getContext("2d");
    pen.font = fontOf(12);
    this.left = this.bare ? 1 : Math.ceil(Math.max(...this.rows.map((name) => pen.measureText(name).width))) + 10;
    this.top = this.bare ? 1 : this.columnTitle ? 34 : 20;
    const room = width - this.left - 2;
    this.wide = Math.max(3, Math.min(room / this.columns.length, this.widest));
    this.high = this.square ? this.stretch * this.wide : clamp(this.most / this.rows.length, this.lowest, this.tallest);
    return [this.left + this.wide * this.columns.length + 2, this.top + this.high * this.rows.length + 2];
  }

  place(row, column) {
    return [this.left + column * this.wide, this.top + row * this.high];
  }

  draw(available) {
    const [width, height] = this.measure(available);
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const line = !this.bare && this.wide > 7 && this.high > 7 ? 1 : 0;
    if (this.backdrop?.complete && this.backdrop.naturalWidth) {
      pen.imageSmoothingEnabled = this.backdrop.naturalWidth > 200;
      pen.filter = "grayscale(1)"; // or the picture's colours would mix with those that mean something
      pen.drawImage(this.backdrop, this.left, this.top, this.wide * this.columns.length, this.high * this.rows.length);
      pen.filter = "none";
    }
    for (const row of range(this.rows.length)) for (const column of range(this.columns.length)) this.drawCell(pen, row, column, line);
    if (!this.bare) this.names(pen);
    this.outline();
  }

  outline() {
    // The chosen cell has a frame of its own, so that moving does not draw thousands of cells.
    this.frame.hidden = !this.at;
    if (!this.at) return;
    const [x, y] = this.place(...this.at);
    Object.assign(this.frame.style, { left: `${x}px`, top: `${y}px`, width: `${this.wide}px`, height: `${this.high}px` });
  }

  drawCell(pen, row, column, line) {
    const cell = this.cell(row, column);
    const [x, y] = this.place(row, column);
    if (!cell) {
      pen.fillStyle = css("--line");
      pen.fillRect(x + this.wide / 2 - 1, y + this.high / 2, 2, 1);
      return;
    }
    const alpha = cell.alpha ?? 1;
    // With nothing behind it, a paler cell is a colour of its own.
    const colour = this.backdrop || alpha === 1 ? cell.colour : mixed(cell.colour, surfaceColour(), alpha);
    pen.fillStyle = rgb(colour);
    // Whole device pixels, or neighbours show seams.
    const [left, right] = [Math.round(x), Math.round(x + this.wide) - line];
    pen.globalAlpha = this.backdrop ? alpha : 1;
    pen.fillRect(left, Math.round(y), right - left, Math.round(y + this.high) - line - Math.round(y));
    pen.globalAlpha = 1;
    if (!this.backdrop || alpha >= 0.4) this.write(pen, cell, x, y, inkOn(colour));
  }

  write(pen, cell, x, y, ink) {
    if (cell.cross) {
      const reach = Math.min(this.wide, this.high, 16) / 4;
      const [cx, cy] = [x + this.wide / 2, y + this.high / 2];
      pen.strokeStyle = ink;
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.moveTo(cx - reach, cy - reach), pen.lineTo(cx + reach, cy + reach);
      pen.moveTo(cx + reach, cy - reach), pen.lineTo(cx - reach, cy + reach);
      pen.stroke();
    } else if (cell.text && this.high >= 18) {
      pen.font = fontOf(11);
      if (pen.measureText(cell.text).width > this.wide - 6) return;
      pen.fillStyle = ink;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      if (this.backdrop) { // a halo, for what the picture does to the colour below
        pen.strokeStyle = ink === "#fff" ? "rgb(0 0 0 / 45%)" : "rgb(255 255 255 / 45%)";
        pen.lineWidth = 2.5;
        pen.strokeText(cell.text, x + this.wide / 2, y + this.high / 2);
      }
      pen.fillText(cell.text, x + this.wide / 2, y + this.high / 2);
    }
  }

  names(pen) {
    pen.font = fontOf(12);
    pen.fillStyle = css("--soft");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const everyRow = Math.ceil(14 / this.high);
    this.rows.forEach((name, row) => {
      if (row % everyRow === 0) pen.fillText(name, this.left - 8, this.place(row, 0)[1] + this.high / 2);
    });
    pen.textAlign = "center";
    const widest = Math.max(...this.columns.map((name) => pen.measureText(name).width)) + 6;
    const every = [1, 2, 4, 8, 16, 32, 64].find((n) => n * this.wide >= widest) ?? 128;
    this.columns.forEach((name, column) => {
      if (column % every === 0) pen.fillText(name, this.left + (column + 0.5) * this.wide, this.top - 10);
    });
    if (this.columnTitle) {
      pen.textAlign = "left";
      pen.fillText(this.columnTitle, this.left, 8);
    }
  }

  point(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    const column = Math.floor((x - this.left) / this.wide);
    const row = Math.floor((y - this.top) / this.high);
    if (row < 0 || row >= this.rows.length || column < 0 || column >= this.columns.length) this.leave();
    else this.move([row, column], false);
  }

  key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0] };
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [row, column] = this.at ?? [0, 0];
    this.move([clamp(row + step[0], 0, this.rows.length - 1), clamp(column + step[1], 0, this.columns.length - 1)]);
  }

  move(at, aloud = true) {
    this.at = at;
    this.outline();
    const cell = this.cell(...at);
    if (!cell) return hush();
    const [x, y] = this.place(...at);
    tell(cell.told(), boxIn(this.canvas, x, y, this.wide, this.high), aloud);
  }

  leave() {
    if (!this.at) return;
    this.at = null;
    this.outline();
    hush();
  }

  table() {
    return table([this.rowTitle, ...this.columns], this.rows.map((name, row) =>
      [name, ...range(this.columns.length).map((column) => this.cell(row, column)?.value ?? "–")]), this.label);
  }
}

function legend(name, ticks, note) {
  // A strip of a colour scale; ticks are [share of its length, text].
  const canvas = el("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const draw = () => {
    const pen = canvas.getContext("2d");
    ramp(name).forEach((colour, i) => { pen.fillStyle = rgb(colour); pen.fillRect(i, 0, 1, 1); });
  };
  draw();
  onTheme(draw);
  return el("div", { class: "legend" },
    el("div", { class: "strip" }, canvas, el("div", { class: "ticks" }, ticks.map(([at, text]) => el("span", { style: { left: `${100 * at}%` } }, text)))),
    note ? el("span", { class: "note" }, note) : null);
}
