// The runs of the report, `RunContents` of tools/expert_report/contents.py as plain objects.

const READERS = {
  i1: (view, i) => view.getInt8(i), i2: (view, i) => view.getInt16(2 * i, true), i4: (view, i) => view.getInt32(4 * i, true),
  f4: (view, i) => { const x = view.getFloat32(4 * i, true); return Number.isNaN(x) ? null : x; },
};

function unpacked({ $: kind, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  const nest = (axis) => Array.from({ length: shape[axis] }, () => (axis === shape.length - 1 ? READERS[kind](view, at++) : nest(axis + 1)));
  return nest(0);
}

const runs = JSON.parse(document.getElementById("data").textContent, (_, value) => (value && value.$ ? unpacked(value) : value));
const two = runs.length === 2;
