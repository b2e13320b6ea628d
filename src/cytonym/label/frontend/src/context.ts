// The current cell in its tissue: pan, zoom, outlines in the colours of the classes, click to choose.

import { parseColor } from "./colors.ts";
import { Compositor } from "./compositor.ts";
import { button, eachFrame, fitCanvas, h, iconButton, NO_WEBGL } from "./dom.ts";
import { takeLimits } from "./gallery.ts";
import { ConnectionLost } from "./link.ts";
import { UNLABELLED, type CellDetails } from "./protocol.ts";
import type { State } from "./state.ts";

interface Shown {
  y: number;
  x: number;
  h: number;
  w: number;
  scale: number;
  region: string;
  cells: Uint32Array; // row + 1, 0 between cells
  outline: HTMLCanvasElement;
}

/** First pixel and number of pixels of a stretch around a middle, as far as it lies in an image. */
export function within(middle: number, length: number, size: number): [number, number] {
  const first = Math.max(0, Math.round(middle - length / 2));
  return [first, Math.min(size, Math.round(middle - length / 2) + Math.ceil(length)) - first];
}

export class ContextPane {
  readonly element: HTMLElement;
  private canvas = h("canvas", { class: "layer" });
  private over = h("canvas", { class: "layer over" });
  private stage: HTMLElement;
  private note = h("div", { class: "empty" });
  private title = h("strong", {}, "Tissue");
  private place = h("span", { class: "quiet ellipsis" });
  private colorBy: "label" | "prediction" = "label";
  private compositor: Compositor | null = null;
  private shown: Shown | null = null;
  private channels: number[] = [];
  private center: [number, number] = [0, 0]; // y, x of the middle in full-resolution pixels
  private scale = 0.5; // full-resolution pixels per CSS pixel
  private region = "";
  private details: CellDetails | null = null;
  private trouble = ""; // why there is no picture
  private asked = 0;
  private timer = 0;
  private redraw = eachFrame(() => this.draw());
  onDetails: (details: CellDetails | null) => void = () => {};
  onMenu: () => void = () => {};

  constructor(private state: State) {
    const swap = button("Outlines: label", "Outlines in the colours of labels or of suggestions", () => {
      this.colorBy = this.colorBy === "label" ? "prediction" : "label";
      swap.textContent = `Outlines: ${this.colorBy === "label" ? "label" : "suggestion"}`;
      this.trace();
    });
    this.stage = h("div", { class: "stage dark", tabindex: "0", role: "application", "aria-label": "The current cell in its tissue. Drag moves, wheel zooms, click chooses a cell." },
      this.canvas, this.over, this.note, h("div", { class: "tools" }, iconButton("plus", "Zoom in", () => this.zoom(1 / 1.5)), iconButton("minus", "Zoom out", () => this.zoom(1.5)), iconButton("target", "Back to the cell", () => this.home())));
    this.element = h("section", { class: "pane context", "aria-label": "Tissue" }, h("div", { class: "bar" }, this.title, this.place, h("span", { class: "grow" }), swap), this.stage);
    try {
      this.compositor = new Compositor(this.canvas);
      this.compositor.onRestored = () => this.redraw();
    } catch (error) {
      state.fail("The tissue cannot be drawn", error);
    }
    this.listen();
    new ResizeObserver(() => {
      this.draw();
      this.loadSoon();
    }).observe(this.stage);
    state.on(["current"], () => void this.follow());
    state.on(["details", "model"], () => void this.describe());
    state.on(["hello"], () => this.explain());
    state.on(["channels"], () => this.loadSoon());
    state.on(["looks", "outlines"], () => this.redraw());
    state.on(["labels", "classes"], eachFrame(() => this.trace()));
    this.explain();
  }

  private explain(): void {
    const { hello, current } = this.state;
    const text = !hello ? "" : !hello.has_image ? "This store has no image: label in the map." : !this.compositor ? NO_WEBGL
      : current < 0 ? "Choose a cell to see it in its tissue." : this.trouble;
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  close(): void {
    window.clearTimeout(this.timer);
    this.compositor?.close();
  }

  private async describe(): Promise<void> {
    const row = this.state.current;
    if (row < 0) {
      this.details = null;
      this.onDetails(null);
      return;
    }
    try {
      const { header } = await this.state.link.request("cell", { row });
      if (row !== this.state.current) return;
      this.details = header as unknown as CellDetails;
      this.onDetails(this.details);
    } catch (error) {
      this.state.fail("The cell could not be read", error);
    }
  }

  private async follow(): Promise<void> {
    this.explain();
    this.redraw();
    await this.describe();
    const cell = this.details;
    if (!cell || this.state.current < 0) return;
    if (cell.x === null || cell.y === null) {
      this.place.textContent = "without a place";
      this.region = "";
      return this.redraw();
    }
    this.place.textContent = `${cell.region} · x ${Math.round(cell.x)}, y ${Math.round(cell.y)}`;
    if (!this.state.hello.has_image) return;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const aside = cell.region !== this.region || Math.abs(cell.x - this.center[1]) > (width * this.scale) / 3 || Math.abs(cell.y - this.center[0]) > (height * this.scale) / 3;
    if (aside) {
      this.region = cell.region;
      this.center = [cell.y, cell.x];
      this.load();
    } else this.redraw();
  }

  home(): void {
    if (!this.details || this.details.x === null || this.details.y === null) return;
    this.center = [this.details.y, this.details.x];
    this.region = this.details.region;
    this.load();
  }

  private loadSoon(): void {
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.load(), 90);
    this.redraw();
  }

  private load(): void {
    const { state } = this;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    if (!state.hello?.has_image || !this.region || width < 2 || !this.compositor) return;
    const channels = state.hello.rgb ? null : state.looks.filter((look) => look.on).map((look) => look.index);
    const [h2, w2] = [height * this.scale * 1.3, width * this.scale * 1.3]; // a margin, so that small moves need no answer
    const [tall, across] = this.extent;
    const [y, tallBox] = within(this.center[0], h2, tall);
    const [x, acrossBox] = within(this.center[1], w2, across);
    if (tallBox < 1 || acrossBox < 1) return;
    const asked = ++this.asked;
    const px = Math.min(1024, Math.ceil(Math.max(h2, w2) / Math.min(1, this.scale)));
    const region = this.region;
    state.link.request("context", { region, y, x, h: tallBox, w: acrossBox, px: Math.max(16, px), channels }).then(({ header, buffers }) => {
      if (asked !== this.asked) return;
      const [c, rows, columns] = [Number(header["c"]), Number(header["h"]), Number(header["w"])];
      const wide = header["dtype"] === "u2";
      const data = wide ? new Uint16Array(buffers[0] as ArrayBuffer) : new Uint8Array(buffers[0] as ArrayBuffer);
      this.channels = (header["channels"] as number[] | undefined) ?? channels ?? [0, 1, 2];
      takeLimits(state, this.channels, header["limits"] as [number, number][] | undefined, wide, header["range"] as [number, number][] | null | undefined);
      this.compositor?.setPictures({ data, n: rows && columns ? 1 : 0, c, h: rows, w: columns, outline: null });
      const cells = buffers[1]?.byteLength ? new Uint32Array(buffers[1]) : new Uint32Array(rows * columns);
      this.shown = { y: Number(header["y"]), x: Number(header["x"]), h: rows, w: columns, scale: Number(header["scale"]), region, cells, outline: h("canvas") };
      this.say("");
      this.trace();
    }).catch((error) => {
      if (asked !== this.asked || error instanceof ConnectionLost) return;
      this.shown = null;
      this.say(error instanceof Error ? error.message : String(error));
    });
  }

  private say(trouble: string): void {
    this.trouble = trouble;
    this.explain();
    this.redraw();
  }

  /** Rows and columns of the image of this region. */
  private get extent(): [number, number] {
    const region = this.state.hello.regions.find(({ name }) => name === this.region);
    return region ? [region.height, region.width] : [Infinity, Infinity];
  }

  /** Nobody gets lost beside the tissue. */
  private stay(): void {
    this.center = this.extent.map((size, k) => Math.max(0, Math.min(size, this.center[k] as number))) as [number, number];
  }

  /** Draws the outlines of all cells of the piece shown, once for each change of labels. */
  private trace(): void {
    const shown = this.shown;
    if (!shown || !shown.h || !shown.w) return this.redraw();
    const { h: rows, w: columns, cells, outline } = shown;
    outline.width = columns;
    outline.height = rows;
    const g = outline.getContext("2d") as CanvasRenderingContext2D;
    const image = g.createImageData(columns, rows);
    const codes = this.colorBy === "label" ? this.state.codes : (this.state.prediction ?? this.state.codes);
    const colors = new Map(this.state.classes.map((c) => [c.id, parseColor(c.color)]));
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const i = r * columns + c;
        const cell = cells[i] as number;
        if (!cell) continue;
        const edge = (c > 0 && cells[i - 1] !== cell) || (c < columns - 1 && cells[i + 1] !== cell) || (r > 0 && cells[i - columns] !== cell) || (r < rows - 1 && cells[i + columns] !== cell);
        if (!edge) continue;
        const code = codes[cell - 1] as number;
        const color = colors.get(code);
        if (color) image.data.set([...color, 255], 4 * i);
        else if (code === UNLABELLED) image.data.set([215, 220, 228, 105], 4 * i);
        else image.data.set([255, 255, 255, 255], 4 * i);
      }
    }
    g.putImageData(image, 0, 0);
    this.redraw();
  }

  private draw(): void {
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    if (width < 2 || height < 2 || !this.state.hello?.has_image) return;
    fitCanvas(this.canvas, width, height);
    fitCanvas(this.over, width, height);
    const g = this.over.getContext("2d") as CanvasRenderingContext2D;
    const ratio = this.over.width / width;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    const shown = this.shown;
    if (!shown || shown.region !== this.region || this.state.current < 0) {
      this.compositor?.draw([], [], false, width, height);
      return;
    }
    const box = { x: width / 2 + (shown.x - this.center[1]) / this.scale, y: height / 2 + (shown.y - this.center[0]) / this.scale, w: (shown.w * shown.scale) / this.scale, h: (shown.h * shown.scale) / this.scale };
    const looks = this.channels.map((index) => this.state.looks[index]).filter((look) => look !== undefined);
    this.compositor?.draw([{ index: 0, ...box }], looks, false, width, height);
    g.imageSmoothingEnabled = box.w / shown.w < 1.5;
    if (this.state.outlines && shown.h && shown.w) g.drawImage(shown.outline, box.x, box.y, box.w, box.h);
    const cell = this.details;
    if (cell && cell.x !== null && cell.y !== null && cell.region === this.region) {
      const [x, y] = [width / 2 + (cell.x - this.center[1]) / this.scale, height / 2 + (cell.y - this.center[0]) / this.scale];
      if (cell.row === this.state.current && x >= 0 && y >= 0 && x < width && y < height) this.state.seen.add(cell.row);
      const radius = Math.max(10, (this.state.hello.patch_px || 32) / 2 / this.scale);
      for (const [line, color] of [[4, "#000000"], [2, "#ffffff"]] as const) {
        g.lineWidth = line;
        g.strokeStyle = color;
        for (const [sx, sy] of [[-1, -1], [1, -1], [1, 1], [-1, 1]] as const) {
          g.beginPath();
          g.moveTo(x + sx * radius, y + sy * radius * 0.6);
          g.lineTo(x + sx * radius, y + sy * radius);
          g.lineTo(x + sx * radius * 0.6, y + sy * radius);
          g.stroke();
        }
      }
    }
  }

  zoom(factor: number, at?: [number, number]): void {
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const [px, py] = at ?? [width / 2, height / 2];
    const next = Math.max(0.05, Math.min(64, this.scale * factor));
    this.center[1] += (px - width / 2) * (this.scale - next);
    this.center[0] += (py - height / 2) * (this.scale - next);
    this.scale = next;
    this.stay();
    this.loadSoon();
  }

  private rowAt(px: number, py: number): number {
    const shown = this.shown;
    if (!shown || shown.region !== this.region) return -1;
    const x = (this.center[1] + (px - this.stage.clientWidth / 2) * this.scale - shown.x) / shown.scale;
    const y = (this.center[0] + (py - this.stage.clientHeight / 2) * this.scale - shown.y) / shown.scale;
    if (x < 0 || y < 0 || x >= shown.w || y >= shown.h) return -1;
    return (shown.cells[Math.floor(y) * shown.w + Math.floor(x)] as number) - 1;
  }

  private listen(): void {
    const at = (event: MouseEvent): [number, number] => {
      const box = this.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let last: [number, number] | null = null;
    let moved = 0;
    this.over.addEventListener("pointerdown", (event) => {
      if (event.button === 2) return;
      this.over.setPointerCapture(event.pointerId);
      this.stage.focus({ preventScroll: true });
      last = at(event);
      moved = 0;
      event.preventDefault();
    });
    this.over.addEventListener("pointermove", (event) => {
      if (!last) return;
      const now = at(event);
      moved += Math.hypot(now[0] - last[0], now[1] - last[1]);
      this.center = [this.center[0] - (now[1] - last[1]) * this.scale, this.center[1] - (now[0] - last[0]) * this.scale];
      this.stay();
      last = now;
      this.loadSoon();
    });
    this.over.addEventListener("pointercancel", () => (last = null));
    this.over.addEventListener("pointerup", (event) => {
      const from = last;
      last = null;
      if (!from || moved > 5) return;
      const row = this.rowAt(...from);
      if (row < 0) return;
      if (event.shiftKey) {
        this.state.setPicks(() => this.state.picks.toggle(row));
        this.state.setCurrent(row);
      } else this.state.single(row);
    });
    this.over.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      const row = this.rowAt(...at(event));
      if (row < 0) return;
      this.state.single(row);
      this.onMenu();
    });
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-80, Math.min(80, event.deltaY)) * 0.004), at(event));
    }, { passive: false });
  }
}
