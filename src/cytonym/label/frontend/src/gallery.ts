// The gallery: patches of the chosen cells, to look at, pick and label many at once.

import { textOn } from "./colors.ts";
import { Compositor, type Tile } from "./compositor.ts";
import { button, count, eachFrame, fill, fitCanvas, h, iconButton, NO_WEBGL, select, setOptions } from "./dom.ts";
import { CLASS_KEYS } from "./keys.ts";
import type { Offer } from "./offer.ts";
import { UNLABELLED, UNSURE } from "./protocol.ts";
import type { State } from "./state.ts";

const BORDER = 3; // of the suggestion, then of the label
const FRAME = 2 * BORDER + 1;
const GAP = 4;
const MOST_KEY = 32768 + 3;

export class Gallery {
  readonly element: HTMLElement;
  private scroller = h("div", { class: "scroller", tabindex: "0", role: "application", "aria-label": "Gallery of the chosen cells. Arrows move, space picks, digits label." });
  private spacer = h("div", { class: "spacer" });
  private canvas = h("canvas", { class: "layer" });
  private over = h("canvas", { class: "layer over" });
  private sheet = h("div", { class: "sheet" });
  private empty = h("div", { class: "empty" });
  private title = h("strong", { class: "ellipsis" });
  private picked = h("span", { class: "quiet ellipsis" });
  private pageInfo = h("span", { class: "number" });
  private sortMenu: HTMLSelectElement;
  private live = h("div", { class: "hidden", role: "status", "aria-live": "polite" });
  private compositor: Compositor | null = null;
  private order: Uint32Array = new Uint32Array(0);
  private places = new Map<number, number>(); // row to its place in the order
  private page = 0;
  private side = 72;
  private sort = "found";
  private loaded: Uint32Array = new Uint32Array(0); // the rows whose patches are there
  private asked = 0;
  private dragFrom: [number, number] | null = null;
  private dragTo: [number, number] | null = null;
  private redraw = eachFrame(() => this.draw());
  private remark = eachFrame(() => this.drawOver());
  dark = false;

  constructor(private state: State) {
    this.sortMenu = select("Sort by", [], "found", (value) => {
      this.sort = value;
      void this.arrange(true);
    });
    const size = h("input", { type: "range", min: "40", max: "192", step: "8", value: String(this.side), "aria-label": "Size of the patches", title: "Size of the patches" });
    size.addEventListener("input", () => {
      this.side = Number(size.value);
      this.layout();
    });
    const pages = select("Cells per page", ["50", "100", "200", "500"].map((v) => [v, `${v} a page`]), "200", (value) => {
      this.state.perPage = Number(value);
      this.toPage(0);
    });
    this.sheet.append(this.canvas, this.over);
    this.scroller.append(this.spacer, this.sheet);
    this.element = h("section", { class: "pane gallery", "aria-label": "Gallery" },
      h("div", { class: "bar" }, this.title, this.picked, h("span", { class: "grow" }),
        button("All", "Pick all, or none (a)", () => this.all()), button("Invert", "Invert the picks (i)", () => this.invert()),
        iconButton("outline", "Outlines on or off (.)", () => this.toggleOutlines())),
      h("div", { class: "bar" }, h("label", {}, h("span", { class: "word" }, "Sort"), this.sortMenu), size, h("span", { class: "grow" }),
        button("‹", "Page back (PgUp)", () => this.toPage(this.page - 1)), this.pageInfo, button("›", "Page on (PgDn)", () => this.toPage(this.page + 1)), pages),
      h("div", { class: "frame" }, this.scroller, this.empty), this.live);
    try {
      this.compositor = new Compositor(this.canvas);
      this.compositor.onRestored = () => this.redraw();
    } catch (error) {
      state.fail("The gallery cannot be drawn", error);
    }
    this.listen();
    new ResizeObserver(() => this.layout()).observe(this.scroller);
    this.scroller.addEventListener("scroll", () => this.draw());
    state.on(["hello", "model", "classes"], () => this.menus());
    state.on(["hello", "model"], () => this.explain());
    state.on(["set"], () => {
      this.page = 0;
      this.scroller.scrollTop = 0;
      void this.arrange(false);
    });
    state.on(["channels"], () => this.load());
    state.on(["looks", "outlines"], () => this.redraw());
    state.on(["labels", "picks", "classes", "pending", "theme", "model"], () => this.remark());
    state.on(["picks", "set"], () => this.say());
    state.on(["current"], () => this.follow());
    this.explain();
  }

  close(): void {
    this.compositor?.close();
  }

  // ---- order and pages

  private menus(): void {
    const options: [string, string][] = [["found", "as found"], ["confidence-up", "least confident"], ["confidence", "most confident"], ["prediction", "suggestion"], ["label", "label"]];
    setOptions(this.sortMenu, [...options, ...this.state.hello.markers.map((m) => [`marker:${m}`, `${m}, high first`] as [string, string])], this.sort);
  }

  private async arrange(keepPage: boolean): Promise<void> {
    const state = this.state;
    const { set } = state;
    const { sort } = this;
    let values: ArrayLike<number> | null = null;
    let sign = 1;
    if (sort === "label") values = state.codes;
    else if (sort === "prediction") values = state.prediction;
    else if (sort.startsWith("confidence")) {
      values = state.confidence;
      if (sort === "confidence") sign = -1;
    } else if (sort !== "found") {
      values = (await state.column(sort))?.values ?? null;
      sign = -1;
      if (set !== state.set || sort !== this.sort) return; // other cells, or another order, were chosen meanwhile
    }
    this.order = values ? sortedBy(set, values, sign) : set;
    state.order = this.order;
    if (!keepPage && this.order.length) state.setCurrent(this.order[0] as number);
    this.toPage(keepPage ? 0 : this.page);
  }

  private get pageCount(): number {
    return Math.max(1, Math.ceil(this.order.length / this.state.perPage));
  }

  toPage(page: number): void {
    const next = Math.max(0, Math.min(this.pageCount - 1, page));
    if (next !== this.page) this.scroller.scrollTop = 0;
    this.page = next;
    this.load();
    this.layout();
    this.say();
  }

  nextPage(step: number): void {
    this.toPage(this.page + step);
    const first = this.rowsOfPage()[0];
    if (first !== undefined) this.state.setCurrent(first);
  }

  private rowsOfPage(): Uint32Array {
    return this.order.subarray(this.page * this.state.perPage, (this.page + 1) * this.state.perPage);
  }

  private load(): void {
    const state = this.state;
    const rows = this.rowsOfPage().slice();
    this.places = new Map(Array.from(rows, (row, k) => [row, k]));
    this.explain();
    const asked = ++this.asked;
    if (!rows.length || !state.hello.has_image || !this.compositor) {
      this.loaded = rows;
      state.seen.addAll(rows);
      this.compositor?.setPictures({ data: new Uint8Array(0), n: 0, c: 0, h: 1, w: 1, outline: null });
      this.redraw();
      return;
    }
    const start = performance.now();
    const channels = state.hello.rgb ? null : state.looks.filter((look) => look.on).map((look) => look.index);
    state.link.request("gallery", { channels }, [rows]).then(({ header, buffers }) => {
      if (asked !== this.asked) return;
      state.timings["gallery_wait_ms"] = performance.now() - start;
      const [n, c, side] = [Number(header["n"]), Number(header["c"]), Number(header["size"])];
      const data = header["dtype"] === "u2" ? new Uint16Array(buffers[0] as ArrayBuffer) : new Uint8Array(buffers[0] as ArrayBuffer);
      const outline = header["mask"] && buffers[1]?.byteLength ? new Uint8Array(buffers[1]) : null;
      takeLimits(state, (header["channels"] as number[] | undefined) ?? channels, header["limits"] as [number, number][], header["dtype"] === "u2", header["range"] as [number, number][] | null | undefined);
      this.compositor?.setPictures({ data, n, c, h: side, w: side, outline });
      this.shownChannels = (header["channels"] as number[] | undefined) ?? channels ?? [0, 1, 2];
      this.loaded = rows;
      state.seen.addAll(rows);
      this.draw();
      state.timings["gallery_ms"] = performance.now() - start;
    }).catch((error) => state.fail("The patches could not be loaded", error));
  }

  private shownChannels: number[] = [];

  // ---- drawing

  private get columns(): number {
    return Math.max(1, Math.floor((this.scroller.clientWidth - GAP) / (this.side + 2 * FRAME + GAP)));
  }

  private get pitch(): number {
    return this.side + 2 * FRAME + GAP;
  }

  /** The left margin that puts the columns in the middle. */
  private get margin(): number {
    return Math.max(GAP, (this.scroller.clientWidth - this.columns * this.pitch + GAP) / 2);
  }

  private place(k: number): [number, number] {
    return [this.margin + (k % this.columns) * this.pitch, GAP + Math.floor(k / this.columns) * this.pitch];
  }

  private layout(): void {
    const rows = Math.ceil(this.rowsOfPage().length / this.columns);
    this.spacer.style.height = `${rows * this.pitch + GAP}px`;
    this.draw();
  }

  /** The pictures, and what is drawn over them. */
  private draw(): void {
    const [width, height] = [this.scroller.clientWidth, this.scroller.clientHeight];
    if (width < 2 || height < 2) return;
    this.sheet.style.width = `${width}px`;
    this.sheet.style.height = `${height}px`;
    fitCanvas(this.canvas, width, height);
    const tiles: Tile[] = this.inSight(height).filter(([row, , , k]) => this.loaded[k] === row)
      .map(([, x, y, k]) => ({ index: k, x: x + FRAME, y: y + FRAME, w: this.side, h: this.side }));
    const looks = this.shownChannels.map((index) => this.state.looks[index]).filter((look) => look !== undefined);
    this.compositor?.draw(tiles, looks, this.state.outlines, width, height);
    this.drawOver();
  }

  /** Row, corner and place on the page of the cells that are in sight. */
  private inSight(height: number): [number, number, number, number][] {
    const top = this.scroller.scrollTop;
    const found: [number, number, number, number][] = [];
    this.rowsOfPage().forEach((row, k) => {
      const [x, y] = this.place(k);
      if (y - top <= height && y - top + this.pitch >= 0) found.push([row, x, y - top, k]);
    });
    return found;
  }

  private drawOver(): void {
    const [width, height] = [this.scroller.clientWidth, this.scroller.clientHeight];
    if (width < 2 || height < 2) return;
    fitCanvas(this.over, width, height);
    const state = this.state;
    const ratio = this.over.width / width;
    const g = this.over.getContext("2d") as CanvasRenderingContext2D;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    const full = this.side + 2 * FRAME;
    const none = this.dark ? "#39414d" : "#d5d9de";
    const ink = this.dark ? "#ffffff" : "#000000";
    const colorOf = (code: number): string => state.classOf(code)?.color ?? (code === UNLABELLED ? none : ink);
    const someWait = state.pending.size + state.unsent.cells > 0;
    for (const [row, x, y] of this.inSight(height)) {
      const code = state.codes[row] as number;
      const guess = state.prediction ? (state.prediction[row] as number) : -1;
      const frame = (inset: number, line: number, color: string): void => {
        g.lineWidth = line;
        g.strokeStyle = color;
        g.strokeRect(x + inset + line / 2, y + inset + line / 2, full - 2 * inset - line, full - 2 * inset - line);
      };
      if (!state.hello.has_image) {
        g.fillStyle = this.dark ? "#20262e" : "#eceff2";
        g.fillRect(x + FRAME, y + FRAME, this.side, this.side);
      }
      frame(0, BORDER, colorOf(guess));
      frame(BORDER, BORDER, colorOf(code));
      const place = state.classes.findIndex((c) => c.id === code);
      const badge = code === UNLABELLED ? "" : code === UNSURE ? "?" : place < 0 ? "×" : (CLASS_KEYS[place] ?? "•");
      if (badge) {
        const color = colorOf(code);
        g.fillStyle = color;
        g.fillRect(x + 2 * BORDER, y + full - 2 * BORDER - 16, 15, 16);
        g.fillStyle = textOn(color);
        g.font = "bold 12px system-ui, sans-serif";
        g.textAlign = "center";
        g.textBaseline = "middle";
        g.fillText(badge, x + 2 * BORDER + 7.5, y + full - 2 * BORDER - 7.5);
      }
      if (someWait && state.isPending(row)) {
        frame(FRAME + 1, 2, "#000000");
        g.setLineDash([4, 4]);
        frame(FRAME + 1, 2, "#ffffff");
        g.setLineDash([]);
      }
      if (state.offer?.labelled === null && !state.picks.has(row)) {
        g.fillStyle = "rgba(0,0,0,.6)";
        g.fillRect(x, y, full, full);
        g.strokeStyle = "#ffffff";
        g.lineWidth = 2.5;
        g.beginPath();
        for (const dx of [-5, 5]) {
          g.moveTo(x + full - 16 + dx, y + 11);
          g.lineTo(x + full - 16 - dx, y + 21);
        }
        g.stroke();
      }
      if (state.picks.has(row)) {
        g.fillStyle = "rgba(255,255,255,.18)";
        g.fillRect(x + FRAME, y + FRAME, this.side, this.side);
        g.beginPath();
        g.arc(x + full - 16, y + 16, 9, 0, 7);
        g.fillStyle = "#ffffff";
        g.fill();
        g.lineWidth = 1.5;
        g.strokeStyle = "#000000";
        g.stroke();
        g.lineWidth = 2.2;
        g.beginPath();
        g.moveTo(x + full - 20.5, y + 16);
        g.lineTo(x + full - 17, y + 19.5);
        g.lineTo(x + full - 11.5, y + 12.5);
        g.stroke();
      }
      if (row === state.current) {
        g.lineWidth = 2;
        g.strokeStyle = ink;
        g.strokeRect(x - 2, y - 2, full + 4, full + 4);
      }
    }
    if (this.dragFrom && this.dragTo) {
      const [[x0, y0], [x1, y1]] = [this.dragFrom, this.dragTo];
      const top = this.scroller.scrollTop;
      g.fillStyle = this.dark ? "rgba(255,255,255,.15)" : "rgba(0,0,0,.12)";
      g.strokeStyle = ink;
      g.lineWidth = 1;
      g.fillRect(x0, y0 - top, x1 - x0, y1 - y0);
      g.strokeRect(x0, y0 - top, x1 - x0, y1 - y0);
    }
  }

  // ---- words

  private explain(): void {
    const state = this.state;
    const text = !state.hello ? "" : !this.compositor && state.hello.has_image ? NO_WEBGL : !this.order.length
      ? `No cells chosen yet. Drag a lasso on the map, press ${state.model ? "o for a page of suggestions, " : ""}n for the next cells of the queue, or v for all cells in view.`
      : "";
    this.empty.textContent = text;
    this.empty.hidden = !text;
  }

  private say(): void {
    const { set, setName, picks, offer } = this.state;
    this.pageInfo.textContent = `${this.page + 1} / ${this.pageCount}`;
    if (offer) return this.sayOffer(offer);
    this.title.textContent = set.length ? `${count(set.length)} ${set.length === 1 ? "cell" : "cells"}` : "Gallery";
    this.title.title = setName ? `From: ${setName}` : "";
    const reason = this.state.setReasons[set.indexOf(this.state.current)];
    this.picked.textContent = picks.count ? `${count(picks.count)} picked` : `${setName}${reason ? ` · ${reason}` : ""}`;
    this.picked.title = "";
    this.picked.classList.toggle("strong", picks.count > 0);
  }

  private sayOffer({ label, expected, labelled }: Offer): void {
    const { set, picks } = this.state;
    const name = this.state.nameOf(label);
    const out = set.length - (labelled ?? set.filter((row) => picks.has(row)).length);
    fill(this.title, h("span", { class: "swatch", style: { background: this.state.classOf(label)?.color ?? "none" } }), labelled === null ? `${name}?` : name);
    this.title.title = `Suggested: ${name}; about ${count(expected)} of ${count(set.length)} may be right`;
    this.picked.classList.toggle("strong", labelled === null);
    this.picked.textContent = labelled === null ? `Enter labels ${out ? `${count(set.length - out)} of ${count(set.length)}` : `all ${count(set.length)} · click takes out`}` : `${count(labelled)} labelled${out ? `, ${count(out)} out` : ""} · o: next`;
    this.picked.title = labelled === null ? `Click the cells that are not ${name}; Enter gives the class to the others` : "o brings the next page";
  }

  private follow(): void {
    const { current, codes, prediction, confidence, setReasons, set } = this.state;
    const at = this.order.indexOf(current);
    if (at >= 0) {
      const page = Math.floor(at / this.state.perPage);
      if (page !== this.page) this.toPage(page);
      const [, y] = this.place(at - page * this.state.perPage);
      const { scrollTop, clientHeight } = this.scroller;
      if (y < scrollTop) this.scroller.scrollTop = y - GAP;
      else if (y + this.pitch > scrollTop + clientHeight) this.scroller.scrollTop = y + this.pitch - clientHeight + GAP;
    }
    if (current >= 0) {
      const guess = prediction ? (prediction[current] as number) : -1;
      const sure = confidence && confidence[current] !== 255 ? `, ${Math.round(((confidence[current] as number) / 254) * 100)} per cent` : "";
      const reason = setReasons[set.indexOf(current)];
      this.live.textContent = `${at >= 0 ? `Cell ${at + 1} of ${this.order.length}` : "Cell"}: ${this.state.nameOf(codes[current] as number)}${guess >= 0 ? `, suggested ${this.state.nameOf(guess)}${sure}` : ""}${reason ? `, ${reason}` : ""}`;
    }
    this.say();
    this.remark();
  }

  // ---- picking

  all(): void {
    const { picks, set } = this.state;
    this.state.setPicks(() => {
      const every = picks.count === set.length;
      picks.clear();
      if (!every) picks.addAll(set);
    });
  }

  invert(): void {
    const { picks, set } = this.state;
    this.state.setPicks(() => {
      for (const row of set) picks.toggle(row);
    });
  }

  toggle(): void {
    const { picks, current } = this.state;
    if (current >= 0) this.state.setPicks(() => picks.toggle(current));
  }

  toggleOutlines(): void {
    this.state.outlines = !this.state.outlines;
    this.state.emit("outlines");
  }

  move(dx: number, dy: number, pick = false): void {
    const at = this.order.indexOf(this.state.current);
    const to = at < 0 ? 0 : Math.max(0, Math.min(this.order.length - 1, at + dx + dy * this.columns));
    const row = this.order[to];
    if (row === undefined) return;
    if (pick) this.state.setPicks(() => [this.state.current, row].forEach((r) => r >= 0 && this.state.picks.add(r)));
    this.state.setCurrent(row);
  }

  private rowAt(x: number, y: number): number {
    const [c, r] = [Math.floor((x - this.margin) / this.pitch), Math.floor((y - GAP) / this.pitch)];
    if (c < 0 || c >= this.columns || r < 0) return -1;
    return this.rowsOfPage()[r * this.columns + c] ?? -1;
  }

  private listen(): void {
    const at = (event: MouseEvent): [number, number] => {
      const box = this.scroller.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top + this.scroller.scrollTop];
    };
    let anchor = -1;
    this.over.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.over.setPointerCapture(event.pointerId);
      this.scroller.focus({ preventScroll: true });
      this.dragFrom = at(event);
      event.preventDefault();
    });
    this.over.addEventListener("pointermove", (event) => {
      if (!this.dragFrom) return;
      const now = at(event);
      if (this.dragTo || Math.hypot(now[0] - this.dragFrom[0], now[1] - this.dragFrom[1]) > 5) {
        this.dragTo = now;
        this.remark();
      }
    });
    this.over.addEventListener("pointerup", (event) => {
      const [from, to] = [this.dragFrom, this.dragTo];
      this.dragFrom = this.dragTo = null;
      if (!from) return;
      const { picks } = this.state;
      if (!to) {
        const row = this.rowAt(...from);
        if (row < 0) return;
        this.state.setPicks(() => {
          const [a, b] = [this.places.get(anchor), this.places.get(row)];
          if (event.shiftKey && a !== undefined && b !== undefined) picks.addAll(this.rowsOfPage().subarray(Math.min(a, b), Math.max(a, b) + 1));
          else picks.toggle(row);
        });
        anchor = row;
        this.state.setCurrent(row);
        return;
      }
      const [x0, x1] = [Math.min(from[0], to[0]), Math.max(from[0], to[0])];
      const [y0, y1] = [Math.min(from[1], to[1]), Math.max(from[1], to[1])];
      this.state.setPicks(() => {
        this.rowsOfPage().forEach((row, k) => {
          const [x, y] = this.place(k);
          const full = this.side + 2 * FRAME;
          if (x > x1 || x + full < x0 || y > y1 || y + full < y0) return;
          if (event.altKey || event.ctrlKey || event.metaKey) picks.delete(row);
          else picks.add(row);
        });
      });
    });
    this.over.addEventListener("pointercancel", () => {
      this.dragFrom = this.dragTo = null;
      this.remark();
    });
    this.over.addEventListener("dblclick", (event) => {
      const row = this.rowAt(...at(event));
      if (row >= 0 && !this.state.offer) this.state.single(row);
    });
    this.over.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      const row = this.rowAt(...at(event));
      if (row >= 0) this.state.setCurrent(row);
    });
  }
}

/** Rows by a value each (whole numbers; 255 of a scale means none: last), those of one value in the order they had. */
export function sortedBy(rows: Uint32Array, values: ArrayLike<number>, sign: number): Uint32Array {
  const low = -3; // the least code
  const key = (row: number): number => (values instanceof Uint8Array && values[row] === 255 ? MOST_KEY : sign * ((values[row] as number) - low) + (sign < 0 ? MOST_KEY - 1 : 0));
  const starts = new Uint32Array(MOST_KEY + 2);
  for (const row of rows) starts[key(row) + 1] = (starts[key(row) + 1] as number) + 1;
  for (let k = 1; k < starts.length; k++) starts[k] = (starts[k] as number) + (starts[k - 1] as number);
  const out = new Uint32Array(rows.length);
  for (const row of rows) {
    const k = key(row);
    out[starts[k] as number] = row;
    starts[k] = (starts[k] as number) + 1;
  }
  return out;
}

/** Display limits of channels, from the first answer that tells them; what the user has set stays. */
export function takeLimits(state: State, channels: number[] | null, limits: [number, number][] | undefined, wide: boolean, ranges?: [number, number][] | null): void {
  let changed = false;
  limits?.forEach(([low, high], k) => {
    const look = state.looks[channels ? (channels[k] as number) : k];
    if (!look) return;
    changed ||= String(look.range ?? "") !== String(ranges?.[k] ?? "");
    look.range = ranges?.[k] ?? null;
    if (look.max > 0) return;
    look.low = state.hello.rgb ? 0 : low;
    look.high = state.hello.rgb ? 255 : Math.max(high, low + 1);
    look.max = Math.min(wide ? 65535 : 255, Math.max(look.high * 2, look.low + 2));
    changed = true;
  });
  if (changed) state.emit("looks");
}
