// Colours: classes, scales and what can be read on them.

export type Rgb = [number, number, number];

/** Okabe and Ito's colours for classes (black is left to the background), then tints that differ in lightness. */
export const CLASS_COLORS = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
  "#8c6bb1", "#a6d854", "#b15928", "#7fcdbb", "#fb9a99", "#5ab4ac", "#c51b7d", "#dfc27d", "#4d9221",
];
export const CHANNEL_COLORS = ["#3d7bff", "#2ee66b", "#ff4d4d", "#ffd21f", "#ff5cf4", "#25e0e8", "#ff9a2e", "#f2f2f2"];

export function parseColor(text: string): Rgb {
  const hex = /^#([0-9a-f]{6})/i.exec(text.trim());
  if (hex) {
    const value = parseInt(hex[1] as string, 16);
    return [value >> 16, (value >> 8) & 255, value & 255];
  }
  const short = /^#([0-9a-f])([0-9a-f])([0-9a-f])$/i.exec(text.trim());
  if (short) return [1, 2, 3].map((i) => parseInt(short[i] as string, 16) * 17) as Rgb;
  return [128, 128, 128];
}

export const hexColor = (rgb: Rgb): string => "#" + rgb.map((v) => Math.round(v).toString(16).padStart(2, "0")).join("");

function luminance(rgb: Rgb): number {
  const [r, g, b] = rgb.map((v) => {
    const s = v / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  }) as Rgb;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** The ratio of WCAG: 1 (the same) to 21 (black on white). */
export function contrast(a: Rgb, b: Rgb): number {
  const [low, high] = [luminance(a), luminance(b)].sort((p, q) => p - q) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

/** Black or white: the one that reads better on the colour. */
export const textOn = (color: string): string =>
  contrast(parseColor(color), [0, 0, 0]) >= contrast(parseColor(color), [255, 255, 255]) ? "#000000" : "#ffffff";

/** The first class colour not in use; after all are, a hue for the number of the class. */
export function nextColor(used: string[]): string {
  const taken = new Set(used.map((c) => c.toLowerCase()));
  const free = CLASS_COLORS.find((c) => !taken.has(c));
  if (free) return free;
  const hue = (used.length * 137.508) % 360;
  const channel = (k: number): number => {
    const t = (k + hue / 30) % 12;
    return 255 * (0.55 - 0.35 * Math.max(-1, Math.min(t - 3, 9 - t, 1)));
  };
  return hexColor([channel(0), channel(8), channel(4)]);
}

const SCALE: Rgb[] = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
];

/** A colour of the scale from dark violet to yellow; even in lightness. */
export function scaleColor(t: number): Rgb {
  const at = Math.max(0, Math.min(1, t)) * (SCALE.length - 1);
  const i = Math.min(SCALE.length - 2, Math.floor(at));
  const [a, b] = [SCALE[i] as Rgb, SCALE[i + 1] as Rgb];
  return [0, 1, 2].map((k) => (a[k] as number) + ((b[k] as number) - (a[k] as number)) * (at - i)) as Rgb;
}

export interface Theme {
  none: Rgb;
  unsure: Rgb;
  notCell: Rgb;
}

export const THEMES: { light: Theme; dark: Theme } = {
  light: { none: [168, 174, 182], unsure: [90, 90, 90], notCell: [20, 20, 20] },
  dark: { none: [104, 112, 124], unsure: [190, 190, 190], notCell: [240, 240, 240] },
};

export const FIRST_CLASS = 3;

/** 256 colours for points coloured by class: none, unsure, not a cell, then the classes in their order. */
export function classTable(colors: string[], theme: Theme): Uint8Array {
  const table = new Uint8Array(256 * 4).fill(255);
  const put = (i: number, rgb: Rgb): void => table.set(rgb, 4 * i);
  put(0, theme.none);
  put(1, theme.unsure);
  put(2, theme.notCell);
  colors.slice(0, 256 - FIRST_CLASS).forEach((c, k) => put(FIRST_CLASS + k, parseColor(c)));
  return table;
}

/** 256 colours for a scale; the last is for cells without a value. */
export function scaleTable(theme: Theme): Uint8Array {
  const table = new Uint8Array(256 * 4).fill(255);
  for (let i = 0; i < 255; i++) table.set(scaleColor(i / 254), 4 * i);
  table.set(theme.none, 4 * 255);
  return table;
}

/** The place in the class table of every code. */
export function codeIndices(codes: Int16Array, ids: number[], out: Uint8Array): void {
  const largest = ids.reduce((a, b) => Math.max(a, b), 0);
  const table = new Uint8Array(largest + 1);
  ids.forEach((id, k) => (table[id] = Math.min(255, FIRST_CLASS + k)));
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i] as number;
    out[i] = code >= 0 ? (table[code] ?? 0) : code === -1 ? 0 : code === -2 ? 1 : 2;
  }
}
