// What hovering and the arrow keys show: one box near the place, and the same words for a screen
// reader.

const tooltip = el("div", { class: "tooltip", role: "tooltip", hidden: true });
const spoken = el("div", { class: "unseen", "aria-live": "polite" });

function tell({ title, lines }, box, aloud) {
  // `lines` are [name, value] or one text; `box` is the place in the window that they are about.
  tooltip.replaceChildren(
    el("strong", {}, title),
    ...lines.map((line) => Array.isArray(line)
      ? el("div", { class: "pair" }, el("span", {}, line[2] ? el("i", { class: "swatch", style: { background: line[2] } }) : null, line[0]), el("b", {}, line[1]))
      : el("div", {}, line)));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const middle = (box.left + box.right) / 2;
  const above = box.top - height - 8;
  tooltip.style.left = `${clamp(middle - width / 2, 8, Math.max(8, innerWidth - width - 8))}px`;
  tooltip.style.top = `${above >= 8 ? above : Math.min(box.bottom + 8, innerHeight - height - 8)}px`;
  if (aloud) spoken.textContent = [title, ...lines.map((line) => (Array.isArray(line) ? line.slice(0, 2).join(": ") : line))].join(". ");
}

function hush() {
  tooltip.hidden = true;
}

addEventListener("scroll", hush, { passive: true, capture: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

// The window's box of a rectangle inside an element.
function boxIn(element, x, y, width, height) {
  const outer = element.getBoundingClientRect();
  return { left: outer.left + x, right: outer.left + x + width, top: outer.top + y, bottom: outer.top + y + height };
}

// Draws again when the element gets another width or the theme changes.
function redrawing(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth && element.clientWidth !== width) {
      width = element.clientWidth;
      draw(width);
    }
  }).observe(element);
  onTheme(() => { if (width && element.isConnected) draw(width); });
  return () => { if (element.clientWidth) draw((width = element.clientWidth)); };
}
