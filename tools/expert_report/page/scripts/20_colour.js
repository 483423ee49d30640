// Colours: the scales of heatmaps, mixed in Oklab so that equal steps look equal, and the theme.
// Scales and categories stay apart for the common forms of colour blindness; nothing is told by
// colour alone.

const SCALES = {
  // below an even share, even, above
  even: {
    light: ["#0f4c9c", "#7fb0e0", "#f1f1ee", "#f0a04b", "#a34400"],
    dark: ["#8cc4ff", "#3f78b5", "#23272d", "#b5651d", "#ffb066"],
  },
  // nothing to much
  amount: {
    light: ["#eef1f2", "#a9d0d3", "#4b9aa8", "#1d6479", "#0b2f4a"],
    dark: ["#1c2127", "#22505c", "#2f8090", "#62b5b8", "#c4efe0"],
  },
};

// Okabe and Ito's colours, https://jfly.uni-koeln.de/color/, a little darker where needed on white.
const CATEGORIES = {
  light: ["#0072b2", "#d55e00", "#00835e", "#b04a86", "#5b5b5b", "#3d9bd6", "#a87900", "#8a4b00"],
  dark: ["#56b4e9", "#f28e3c", "#2fc498", "#e295c2", "#b5b5b5", "#8fd0ff", "#f0c64a", "#c98f5a"],
};

const lookup = new Map();

const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);

function toOklab(hex) {
  const [r, g, b] = parsed(hex).map(linear);
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromOklab([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((v) => Math.round(255 * clamp(v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055, 0, 1)));
}

function ramp(name) {
  // 256 colours [r, g, b] of a scale in the theme of the moment.
  const key = `${name} ${theme()}`;
  if (!lookup.has(key)) {
    const stops = SCALES[name][theme()].map(toOklab);
    lookup.set(key, range(256).map((i) => {
      const at = (i / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(at), stops.length - 2);
      return fromOklab(stops[low].map((v, j) => v + (at - low) * (stops[low + 1][j] - v)));
    }));
  }
  return lookup.get(key);
}

const scale = (name, share) => ramp(name)[Math.round(255 * clamp(share, 0, 1))];
const rgb = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

function inkOn([r, g, b]) {
  // Black or white, whichever contrasts more with a colour.
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.179 ? "#111" : "#fff";
}

function expertColour(expert, experts) {
  // Up to eight experts have colours of their own; more go round the circle of hues in three
  // lightnesses, and are told apart by their numbers.
  if (experts <= CATEGORIES.light.length) {
    return parsed(CATEGORIES[theme()][expert % CATEGORIES.light.length]);
  }
  const hue = (expert * 137.508 * Math.PI) / 180;
  const L = (theme() === "dark" ? [0.74, 0.6, 0.86] : [0.62, 0.48, 0.76])[expert % 3];
  return fromOklab([L, 0.12 * Math.cos(hue), 0.12 * Math.sin(hue)]);
}

const parsed = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const surfaceColour = () => parsed(css("--surface"));
const mixed = (over, under, share) => over.map((v, i) => Math.round(share * v + (1 - share) * under[i]));

const runColour = (run) => CATEGORIES[theme()][run];

// -- theme --------------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const redrawn = new Set();

const theme = () => document.documentElement.dataset.theme;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const onTheme = (draw) => redrawn.add(draw);

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  for (const draw of redrawn) draw();
}

function themeButton() {
  const button = el("button", { type: "button", class: "theme", onclick: () => {
    setTheme(theme() === "dark" ? "light" : "dark");
    say();
  } });
  const say = () => {
    const other = theme() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Show the page in ${other} colours`);
  };
  prefersDark.addEventListener("change", () => {
    setTheme(prefersDark.matches ? "dark" : "light");
    say();
  });
  document.documentElement.dataset.theme = prefersDark.matches ? "dark" : "light";
  say();
  return button;
}
