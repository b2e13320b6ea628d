// The map: cells in the embedding or in the tissue, lasso, zoom, colouring.

import { FILTERS, type Filter } from "./cells.ts";
import { classTable, scaleTable, scaleColor, hexColor, THEMES } from "./colors.ts";
import { count, eachFrame, fitCanvas, h, fill, iconButton, NO_WEBGL, select, setOptions, short } from "./dom.ts";
import { lassoRows, nearestPoint, type Polygon } from "./lasso.ts";
import { densityImage, PointRenderer, type View } from "./points.ts";
import type { State } from "./state.ts";

const MANY = 150_000; // points in view from which on their density is drawn
const MOST_OVER = 300_000; // points that are drawn over the others
const UNITS = 65535;
const [AGREES, DIFFERS] = ["#56b4e9", "#d55e00"] as const;
const NAMES: { [map: string]: string } = { umap: "UMAP", spatial: "Tissue", pca: "PCA" };

export class MapPane {
  readonly element: HTMLElement;
  private canvas = h("canvas", { class: "layer" });
  private over = h("canvas", { class: "layer over" });
  private stage: HTMLElement;
  private tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Map" });
  private colorMenu: HTMLSelectElement;
  private filterMenu: HTMLSelectElement;
  private empty = h("div", { class: "empty", hidden: true });
  private legend = h("div", { class: "legend", hidden: true });
  private info = h("span", { class: "quiet info" });
  private renderer: PointRenderer | null = null;
  private view: View = { x: UNITS / 2, y: UNITS / 2, ux: 100, uy: 100 };
  private fitted: View | null = null; // as it was when everything was shown last
  private views = new Map<string, View>();
  private shownMap = "";
  private density: { view: View; width: number; height: number } | null = null;
  private dense = false;
  private inView = 0;
  private tones: Uint8Array = new Uint8Array(0);
  private table: Uint8Array = classTable([], THEMES.light);
  private lasso: Polygon = [];
  private mode: "lasso" | "move" = "lasso";
  private drag: "lasso" | "move" | null = null;
  private lassoSign: "new" | "add" | "subtract" = "new";
  private dark = false;
  private front = false; // whether coloured cells are drawn over those without a class
  private redraw = eachFrame(() => this.draw());
  private rebinTimer = 0;
  private recolorTimer = 0;
  private recolorSince = 0;
  private asked = 0;
  private tools: HTMLButtonElement;

  constructor(private state: State) {
    this.colorMenu = select("Colour by", [], "label", (value) => state.setColoring(value));
    this.filterMenu = select("Show", FILTERS.map((f) => [f, f === "all" ? "all cells" : f]), "all", (value) => state.setFilter(value as Filter));
    this.tools = iconButton("move", "Drag moves the map instead of drawing a lasso", () => this.setMode(this.mode === "lasso" ? "move" : "lasso"), { "aria-pressed": "false" });
    this.stage = h("div", { class: "stage", tabindex: "0", role: "application", "aria-label": "Map of the cells. Drag for a lasso; v shows the cells in view; Alt and arrows move it; plus and minus zoom." },
      this.canvas, this.over, this.empty, this.legend, h("div", { class: "tools" }, this.tools,
        iconButton("plus", "Zoom in (+)", () => this.zoom(1 / 1.5)), iconButton("minus", "Zoom out (−)", () => this.zoom(1.5)),
        iconButton("fit", "Show everything (Home)", () => this.fit())));
    this.element = h("section", { class: "pane map", "aria-label": "Map" },
      h("div", { class: "bar" }, this.tabs, h("label", {}, h("span", { class: "word" }, "Colour"), this.colorMenu), this.filterMenu),
      this.stage, h("div", { class: "foot" }, this.info));
    try {
      this.renderer = new PointRenderer(this.canvas);
    } catch (error) {
      state.fail("The map cannot be drawn", error);
      this.empty.textContent = NO_WEBGL;
      this.empty.hidden = false;
    }
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.renderer?.create();
      if (state.points) this.renderer?.setPoints(state.points);
      this.renderer?.setChosen(state.set);
      this.upload();
    });
    this.listen();
    new ResizeObserver(() => this.resized()).observe(this.stage);
    state.on(["hello", "classes", "model"], () => this.menus());
    state.on(["points"], () => this.newPoints());
    state.on(["classes", "coloring", "theme"], () => void this.recolor());
    state.on(["labels"], () => this.recolorSoon());
    state.on(["filter"], () => {
      this.filterMenu.value = state.filter;
      void this.recolor();
    });
    state.on(["set"], () => this.chosen());
    state.on(["current", "picks"], () => this.drawOver());
  }

  close(): void {
    window.clearTimeout(this.rebinTimer);
    window.clearTimeout(this.recolorTimer);
    this.renderer?.close();
  }

  setTheme(dark: boolean): void {
    this.dark = dark;
  }

  private get size(): [number, number] {
    return [this.stage.clientWidth, this.stage.clientHeight];
  }

  private get flip(): boolean {
    return this.state.map !== "spatial"; // an embedding has its y upwards, tissue downwards
  }

  // ---- what is shown

  private menus(): void {
    const { hello, map } = this.state;
    fill(this.tabs, ...hello.maps.map((name) => h("button", {
      type: "button", role: "tab", class: "tab", "aria-selected": String(name === map), title: "Next map: m",
      onclick: () => void this.state.loadMap(name),
    }, NAMES[name] ?? name)));
    if (!hello.maps.length) fill(this.tabs, h("span", { class: "quiet" }, "no map"));
    const options: [string, string][] = [["label", "label"], ["prediction", "suggestion"], ["confidence", "confidence"], ["discordant", "discordant"]];
    setOptions(this.colorMenu, [...options, ...hello.markers.map((m) => [`marker:${m}`, m] as [string, string])], this.state.coloring);
  }

  private newPoints(): void {
    const state = this.state;
    this.menus();
    const points = state.points;
    if (!points) {
      this.info.textContent = state.hello.n ? "There is no map: the gallery's queue still works." : "There are no cells.";
      return;
    }
    if (this.shownMap) this.views.set(this.shownMap, { ...this.view });
    this.renderer?.setPoints(points);
    const kept = this.views.get(state.map);
    this.shownMap = state.map;
    if (kept) this.view = kept;
    else this.fit();
    void this.recolor();
  }

  /** Labels come one after another: the map of a million cells follows in one go, and keys are not held up. */
  private recolorSoon(): void {
    const now = performance.now();
    this.recolorSince ||= now;
    window.clearTimeout(this.recolorTimer);
    const pause = this.tones.length > 100_000 && now - this.recolorSince < 1000 ? 250 : 0;
    this.recolorTimer = window.setTimeout(() => {
      this.recolorSince = 0;
      void this.recolor();
    }, pause);
  }

  private async recolor(): Promise<void> {
    const state = this.state;
    if (!state.hello || !this.renderer) return;
    this.colorMenu.value = state.coloring;
    const asked = ++this.asked;
    const { values, scale } = await state.colorBytes();
    if (asked !== this.asked) return; // another colouring was chosen meanwhile
    const theme = this.dark ? THEMES.dark : THEMES.light;
    this.tones = values;
    this.table = scale ? scaleTable(theme) : classTable(state.classes.map((c) => c.color), theme);
    const discordant = state.coloring === "discordant";
    if (discordant) this.table = classTable([AGREES, DIFFERS], theme);
    this.legend.hidden = !scale && !discordant;
    if (discordant) {
      fill(this.legend, h("span", { class: "swatch", style: { background: AGREES } }), "agrees", h("span", { class: "swatch", style: { background: DIFFERS } }), "discordant");
    } else if (scale) {
      const steps = [0, 0.25, 0.5, 0.75, 1].map((t) => hexColor(scaleColor(t))).join(", ");
      fill(this.legend, h("span", {}, short(scale.low)),
        h("span", { class: "ramp", style: { background: `linear-gradient(to right, ${steps})` } }), h("span", {}, short(scale.high)));
    }
    this.front = !scale;
    this.upload();
  }

  private upload(): void {
    if (!this.renderer || !this.state.points) return;
    this.renderer.setTones(this.tones, this.table, this.state.hidden);
    this.renderer.setFront(this.front ? coloredRows(this.tones, this.state.hidden) : new Uint32Array(0));
    this.rebin();
    this.redraw();
  }

  private chosen(): void {
    this.renderer?.setChosen(this.state.set);
    this.redraw();
  }

  // ---- drawing

  private rebin(): void {
    const { points, hidden } = this.state;
    const [width, height] = this.size;
    if (!points || width < 2 || height < 2 || !this.tones.length) return;
    const cell = points.length > 2 * 600_000 ? 2 : 1.5;
    const [columns, rows] = [Math.ceil(width / cell), Math.ceil(height / cell)];
    const { pixels, inView } = densityImage(points, this.tones, this.table, hidden, this.view, width, height, columns, rows, this.flip);
    this.inView = inView;
    this.dense = inView > MANY;
    if (this.dense) {
      this.renderer?.setDensity(pixels, columns, rows);
      this.density = { view: { ...this.view }, width, height };
    }
    this.info.textContent = `${count(inView)} of ${count(points.length >> 1)} cells in view${this.dense ? ", drawn as density" : ""}`;
  }

  private rebinSoon(): void {
    window.clearTimeout(this.rebinTimer);
    this.rebinTimer = window.setTimeout(() => {
      this.rebin();
      this.redraw();
    }, 90);
    this.redraw();
  }

  private draw(): void {
    const [width, height] = this.size;
    if (!this.renderer || !this.state.points || width < 2) return;
    fitCanvas(this.canvas, width, height);
    this.renderer.clear();
    const set = this.state.set.length > 0 && this.state.set.length < this.tones.length;
    const crowd = Math.max(1, this.inView);
    const size = Math.max(1.5, Math.min(9, 0.55 * Math.sqrt((width * height) / crowd)));
    const alpha = Math.max(0.35, Math.min(0.9, 1.2 - Math.log10(crowd) / 8));
    if (this.dense && this.density) this.renderer.drawDensity(this.density.view, this.density.width, this.density.height, this.view, this.flip);
    else this.renderer.drawPoints(this.view, width, height, this.flip, size, set ? alpha * 0.35 : alpha, "all");
    if (set && this.state.set.length < MOST_OVER) this.renderer.drawPoints(this.view, width, height, this.flip, Math.max(size, 2.5), 1, "chosen");
    this.renderer.drawPoints(this.view, width, height, this.flip, Math.max(size * 1.15, 2.5), set ? 0.65 : 1, "front");
    this.drawOver();
    if (this.tones.length) this.state.timings["first_paint_ms"] ??= performance.now();
  }

  private toScreen(row: number): [number, number] {
    const points = this.state.points as Uint16Array;
    const [width, height] = this.size;
    const y = ((points[2 * row + 1] as number) - this.view.y) / this.view.uy;
    return [width / 2 + ((points[2 * row] as number) - this.view.x) / this.view.ux, height / 2 + (this.flip ? -y : y)];
  }

  private toUnits(x: number, y: number): [number, number] {
    const [width, height] = this.size;
    const dy = (y - height / 2) * this.view.uy;
    return [this.view.x + (x - width / 2) * this.view.ux, this.view.y + (this.flip ? -dy : dy)];
  }

  private drawOver(): void {
    const [width, height] = this.size;
    if (width < 2) return;
    fitCanvas(this.over, width, height);
    const ratio = this.over.width / width;
    const g = this.over.getContext("2d") as CanvasRenderingContext2D;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    const ring = (row: number, radius: number, color: string, under: string): void => {
      const [x, y] = this.toScreen(row);
      for (const [line, style] of [[4, under], [2, color]] as const) {
        g.lineWidth = line;
        g.strokeStyle = style;
        g.beginPath();
        g.arc(x, y, radius, 0, 7);
        g.stroke();
      }
    };
    const { points, current, picks } = this.state;
    const [ink, paper] = this.dark ? ["#ffffff", "#000000"] : ["#000000", "#ffffff"];
    if (points) {
      if (picks.count && picks.count <= 500) for (const row of picks.rows()) ring(row, 5, ink, paper);
      if (current >= 0) {
        ring(current, 8, ink, paper);
        ring(current, 1, ink, paper);
      }
    }
    if (this.lasso.length > 1) {
      g.beginPath();
      this.lasso.forEach(([x, y], k) => (k ? g.lineTo(x, y) : g.moveTo(x, y)));
      g.closePath();
      g.fillStyle = this.dark ? "rgba(255,255,255,.12)" : "rgba(0,0,0,.1)";
      g.fill();
      g.lineWidth = 1.5;
      g.strokeStyle = ink;
      g.setLineDash(this.lassoSign === "subtract" ? [5, 4] : []);
      g.stroke();
      g.setLineDash([]);
    }
  }

  private resized(): void {
    const [width, height] = this.size;
    if (width < 2 || height < 2) return;
    const moved = this.shownMap && (["x", "y", "ux", "uy"] as const).some((part) => this.view[part] !== this.fitted?.[part]);
    if (!moved && this.state.points) this.fit();
    this.rebin();
    this.draw();
  }

  // ---- moving

  private fullView(): View {
    const [width, height] = this.size;
    const { x, y } = this.state.pointsRange;
    const [wide, tall] = [Math.max(1e-9, x[1] - x[0]), Math.max(1e-9, y[1] - y[0])];
    const perPixel = Math.max(wide / Math.max(20, width - 24), tall / Math.max(20, height - 24));
    return { x: UNITS / 2, y: UNITS / 2, ux: (perPixel / wide) * UNITS, uy: (perPixel / tall) * UNITS };
  }

  fit(): void {
    this.view = this.fullView();
    this.fitted = { ...this.view };
    this.rebinSoon();
  }

  zoom(factor: number, at?: [number, number]): void {
    const full = this.fullView();
    const k = Math.max(full.ux / 4000 / this.view.ux, Math.min(factor, (full.ux * 2) / this.view.ux));
    const [width, height] = this.size;
    const [px, py] = at ?? [width / 2, height / 2];
    const before = this.toUnits(px, py);
    this.view.ux *= k;
    this.view.uy *= k;
    const after = this.toUnits(px, py);
    this.view.x += before[0] - after[0];
    this.view.y += before[1] - after[1];
    this.rebinSoon();
  }

  pan(dx: number, dy: number): void {
    this.view.x -= dx * this.view.ux;
    this.view.y -= (this.flip ? -dy : dy) * this.view.uy;
    this.rebinSoon();
  }

  nextMap(): void {
    const { maps } = this.state.hello;
    if (maps.length > 1) void this.state.loadMap(maps[(maps.indexOf(this.state.map) + 1) % maps.length] as string);
  }

  nextColoring(): void {
    const names = ["label", "prediction", "confidence", "discordant"];
    this.state.setColoring(names[(names.indexOf(this.state.coloring) + 1) % names.length] as string);
  }

  nextFilter(): void {
    this.state.setFilter(FILTERS[(FILTERS.indexOf(this.state.filter) + 1) % FILTERS.length] as Filter);
  }

  private setMode(mode: "lasso" | "move"): void {
    this.mode = mode;
    this.tools.setAttribute("aria-pressed", String(mode === "move"));
    this.stage.classList.toggle("moving", mode === "move");
  }

  // ---- choosing

  /** The cells within a polygon of the screen become the gallery's, or are added to them or taken from them. */
  choose(screen: Polygon, sign: "new" | "add" | "subtract", name = "lasso"): void {
    const points = this.state.points;
    if (!points || (sign === "subtract" && !this.state.set.length)) return;
    const start = performance.now();
    const found = lassoRows(points, screen.map(([x, y]) => this.toUnits(x, y)), this.state.hidden);
    let rows = found;
    if (sign !== "new" && this.state.set.length) {
      const marked = new Uint8Array(points.length >> 1);
      for (const row of found) marked[row] = 1;
      if (sign === "subtract") rows = this.state.set.filter((row) => !marked[row]);
      else {
        for (const row of this.state.set) marked[row] = 0;
        const added = found.filter((row) => marked[row]);
        rows = new Uint32Array(this.state.set.length + added.length);
        rows.set(this.state.set);
        rows.set(added, this.state.set.length);
      }
    }
    this.state.showSet(rows, name);
    requestAnimationFrame(() => (this.state.timings["lasso_ms"] = performance.now() - start)); // drawn in this frame
  }

  chooseView(): void {
    const [w, t] = this.size;
    this.choose([[0, 0], [w, 0], [w, t], [0, t]], "new", "in view");
  }

  private listen(): void {
    const at = (event: MouseEvent): [number, number] => {
      const box = this.over.getBoundingClientRect(); // within the borders of the stage
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let last: [number, number] = [0, 0];
    let moved = 0;
    this.over.addEventListener("pointerdown", (event) => {
      this.over.setPointerCapture(event.pointerId);
      this.stage.focus({ preventScroll: true });
      last = at(event);
      moved = 0;
      this.drag = event.button === 0 && this.mode === "lasso" ? "lasso" : "move";
      this.lassoSign = event.shiftKey ? "add" : event.altKey || event.ctrlKey || event.metaKey ? "subtract" : "new";
      this.lasso = [last];
      event.preventDefault();
    });
    this.over.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      const now = at(event);
      const step = Math.hypot(now[0] - last[0], now[1] - last[1]);
      if (step < 2) return;
      moved += step;
      if (this.drag === "move") this.pan(now[0] - last[0], now[1] - last[1]);
      else this.lasso.push(now);
      last = now;
      if (this.drag === "lasso") this.drawOver();
    });
    const end = (event: PointerEvent): void => {
      if (!this.drag) return;
      const drag = this.drag;
      const polygon = this.lasso;
      this.drag = null;
      this.lasso = [];
      if (moved < 6 && event.button === 0) this.click(last);
      else if (drag === "lasso" && polygon.length > 2) this.choose(polygon, this.lassoSign);
      this.drawOver();
    };
    this.over.addEventListener("pointerup", end);
    this.over.addEventListener("pointercancel", () => {
      this.drag = null;
      this.lasso = [];
      this.drawOver();
    });
    this.over.addEventListener("contextmenu", (event) => event.preventDefault());
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-80, Math.min(80, event.deltaY)) * 0.004), at(event));
    }, { passive: false });
  }

  private click([x, y]: [number, number]): void {
    const points = this.state.points;
    if (!points) return;
    const [ux, uy] = this.toUnits(x, y);
    const row = nearestPoint(points, ux, uy, 12 * this.view.ux, 12 * this.view.uy, this.state.hidden);
    if (row >= 0) this.state.single(row);
  }
}

/** Rows that have a class, to be seen among many that have none; none where most have one. */
function coloredRows(tones: Uint8Array, hidden: Uint8Array | undefined): Uint32Array {
  let n = 0;
  for (let i = 0; i < tones.length; i++) if (tones[i]) n++;
  if (n > MOST_OVER || n > tones.length / 2) return new Uint32Array(0);
  const rows = new Uint32Array(n);
  let k = 0;
  for (let i = 0; i < tones.length; i++) if (tones[i] && !(hidden && hidden[i])) rows[k++] = i;
  return rows.subarray(0, k);
}
