// All that the panes share, and everything that changes it: connection, labels, the cells in the gallery.

import { Bitset } from "./bitset.ts";
import { Cells } from "./cells.ts";
import { CHANNEL_COLORS } from "./colors.ts";
import { count } from "./dom.ts";
import { ConnectionLost, type ConnectionState, type Link } from "./link.ts";
import { takenOut, type Offer } from "./offer.ts";
import { UNLABELLED, type Counts, type Header, type Hello, type LabelClass, type ModelInfo, type Reply } from "./protocol.ts";
import { browserStorage, Unsent } from "./unsent.ts";

export interface Look {
  index: number;
  name: string;
  color: string;
  on: boolean;
  low: number;
  high: number;
  max: number;
  range: [number, number] | null; // where pixels are scaled: the values that are sent as 0 and 65535
}

export interface Pending {
  rows: Uint32Array;
  code: number;
  source: string;
  shown: number | null;
  out?: Uint32Array; // taken out of a page of suggestions
  model?: string; // that made the page
}

export interface Job {
  name: string;
  done: number;
  total: number;
  text: string;
  state: string;
}

const SHOWN_CHANNELS = 6;
const UNSENT = "unsent";

function hasSorted(rows: Uint32Array, row: number): boolean {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((rows[middle] as number) < row) low = middle + 1;
    else high = middle;
  }
  return rows[low] === row;
}

export class State extends Cells {
  counts: Counts = { total: 0, labelled: 0, by_class: {}, unsure: 0, not_cell: 0 };
  canUndo = false;
  canRedo = false;
  set: Uint32Array = new Uint32Array(0); // the cells in the gallery, as they were found
  order: Uint32Array = new Uint32Array(0); // the same, as they are sorted
  setName = "";
  setReasons: string[] = [];
  offer: Offer | null = null; // the set is a page of suggestions of one class
  perPage = 200;
  picks = new Bitset(0);
  seen = new Bitset(0);
  current = -1;
  looks: Look[] = [];
  outlines = true;

  pending = new Map<number, Pending>();
  readonly unsent = new Unsent(browserStorage(), () => this.tellUnsent());
  connection: ConnectionState = "lost";
  why = ""; // there is no connection
  job: Job | null = null;
  summary: Header = {};
  timings: { [what: string]: number } = {};
  keyAt = 0; // when the key was pressed whose label is being sent
  private counter = 1;
  private stored: Promise<unknown> = Promise.resolve(); // all that was sent is answered
  private left: { label: number; rows: Uint32Array } | null = null; // taken out, and not yet told
  private started = false;

  constructor(link: Link) {
    super(link);
    link.onPush = (header, buffers) => this.push(header, buffers);
    link.onState = (state, why) => void this.connected(state, why);
    link.onLate = (request, reply) => this.late(request, reply);
  }

  // ---- connection and start

  private async connected(state: ConnectionState, why: string): Promise<void> {
    this.connection = state;
    this.why = why;
    this.emit("connection");
    if (state !== "open") return;
    try {
      const reply = await this.link.request("hello");
      const hello = reply.header as unknown as Hello;
      const same = this.started && hello.n === this.hello.n && hello.store === this.hello.store;
      this.takeHello(hello, same);
      const labels = this.loadLabels();
      const points = same && this.points ? null : this.loadPoints(hello.maps[0] ?? "");
      await labels;
      this.emit(...(same ? [] : (["hello"] as const)), "classes", "counts", "channels", "labels", "model", "job"); // what was loading is asked for again
      if (points) {
        await points;
        this.emit("points");
      }
      this.started = true;
      void this.loadPredictions();
      void this.loadSummary();
      this.unsent.open(hello.store ?? "", hello.n);
      this.tellUnsent();
    } catch (error) {
      this.fail("The labels could not be opened", error);
    }
  }

  private takeHello(hello: Hello, same: boolean): void {
    this.hello = hello;
    this.classes = hello.classes;
    this.counts = hello.counts;
    this.canUndo = hello.can_undo;
    this.canRedo = hello.can_redo;
    this.model = hello.model;
    this.job = null; // one that still runs tells of itself
    this.columns.clear();
    if (same) return;
    this.picks = new Bitset(hello.n);
    this.seen = new Bitset(hello.n);
    this.set = new Uint32Array(0);
    this.current = -1;
    const rgb = ["#ff0000", "#00ff00", "#0000ff"];
    this.looks = hello.channels.map((name, index) => ({
      index, name, color: hello.rgb ? (rgb[index] as string) : (CHANNEL_COLORS[index % CHANNEL_COLORS.length] as string),
      on: hello.rgb ? index < 3 : index < SHOWN_CHANNELS, low: 0, high: 0, max: 0, range: null,
    }));
    this.recallLooks();
    if (hello.rgb && !this.looks.length) {
      this.looks = ["red", "green", "blue"].map((name, index) => ({ index, name, color: rgb[index] as string, on: true, low: 0, high: 0, max: 0, range: null }));
    }
  }

  private get looksKey(): string {
    return `cytonym-label-looks:${this.hello.title}`;
  }

  /** Which channels are on, and their colours and contrast, as they were when this page was last open here. */
  private recallLooks(): void {
    try {
      const kept = JSON.parse(window.localStorage.getItem(this.looksKey) ?? "{}") as { [name: string]: Partial<Look> };
      for (const look of this.looks) Object.assign(look, kept[look.name] ?? {});
    } catch {
      // nothing kept, or the host forbids it
    }
  }

  keepLooks(): void {
    if (this.hello.rgb) return;
    try {
      const kept = this.looks.map(({ name, on, color, low, high, max }) => [name, { on, color, low, high, max }]);
      window.localStorage.setItem(this.looksKey, JSON.stringify(Object.fromEntries(kept)));
    } catch {
      // full, or the host forbids it
    }
  }

  async loadSummary(): Promise<void> {
    this.summaryAt = performance.now();
    try {
      this.summary = (await this.link.request("summary")).header;
      this.emit("summary");
    } catch (error) {
      this.fail("The progress could not be read", error);
    }
  }

  // ---- pushes

  private push(header: Header, buffers: ArrayBuffer[]): void {
    switch (header["type"]) {
      case "labels": {
        const rows = new Uint32Array(buffers[0] as ArrayBuffer);
        this.applyCodes(rows, new Int16Array(buffers[1] as ArrayBuffer));
        this.takeCounts(header);
        if (rows.includes(this.current)) this.emit("details");
        break;
      }
      case "classes":
        this.classes = header["classes"] as LabelClass[];
        this.takeCounts(header);
        this.emit("classes", "labels");
        break;
      case "counts":
        this.takeCounts(header);
        break;
      case "model":
        this.model = header as unknown as ModelInfo;
        this.notify("done", `Retrained on ${this.model.trained_on} labels${this.model.seconds ? ` in ${this.model.seconds.toFixed(1)} s` : ""}: suggestions are new.`, [], false, "model");
        void this.loadPredictions();
        void this.loadSummary();
        this.emit("model");
        break;
      case "map": {
        const name = String(header["map"]);
        if (!this.hello.maps.includes(name)) this.hello.maps.push(name);
        this.notify("done", "The map was laid out anew.");
        void this.loadMap(name);
        break;
      }
      case "job":
        this.job = header as unknown as Job;
        if (this.job.state === "failed") this.notify("error", `${this.job.name} failed: ${this.job.text}`);
        else if (this.job.state === "cancelled") this.notify("info", `${this.job.name} was cancelled.`);
        else if (this.job.state === "done" && this.job.name !== "remap") this.notify("done", `${this.job.name} is done. ${this.job.text}`);
        this.emit("job");
        break;
      case "error":
      case "notice":
        this.notify(header["type"] === "error" ? "error" : "info", String(header["text"] ?? header["error"] ?? ""));
        break;
    }
  }

  private takeCounts(header: Header): void {
    if (header["counts"]) this.counts = header["counts"] as Counts;
    if (typeof header["can_undo"] === "boolean") this.canUndo = header["can_undo"];
    if (typeof header["can_redo"] === "boolean") this.canRedo = header["can_redo"];
    this.emit("counts");
  }

  // ---- labels

  /** The cells that a key acts on: the picked ones, else the current one. */
  targets(): Uint32Array {
    if (this.picks.count) return this.picks.rows();
    return this.current >= 0 ? Uint32Array.of(this.current) : new Uint32Array(0);
  }

  assign(code: number): void {
    const open = this.offer !== null && this.offer.labelled === null;
    if (open && code === this.offer?.label) return this.acceptPage();
    const out = open && this.current >= 0 && !this.picks.has(this.current); // the key is for the cell that was taken out
    const rows = out ? Uint32Array.of(this.current) : this.targets();
    if (!rows.length) {
      this.notify("info", "Pick cells first: lasso the map, take the next of the queue (n), or click a cell.");
      return;
    }
    if (this.hello.readonly) {
      this.notify("error", "This store is read-only: labels cannot be stored.");
      return;
    }
    const single = rows.length === 1;
    let shown = 0;
    for (const row of rows) if (this.seen.has(row)) shown++;
    void this.store({ rows, code, source: single ? "single" : "bulk", shown });
    if (out) return;
    if (open) this.offer = null;
    if (this.picks.count) this.setPicks(() => this.picks.clear());
    else if (code !== UNLABELLED) this.advance();
  }

  /** Gives the class of the page to the cells that are still picked; the others were taken out. */
  private acceptPage(): void {
    const { offer, set, picks } = this;
    if (!offer) return;
    if (this.hello.readonly) return void this.notify("error", "This store is read-only: labels cannot be stored.");
    if (set.some((row) => !this.seen.has(row))) return void this.notify("info", "The patches are not all there yet: a moment, or turn the page.");
    const kept = set.filter((row) => picks.has(row)).sort();
    const { before, behind } = takenOut(set, (row) => picks.has(row));
    this.left = behind.length ? { label: offer.label, rows: behind } : null;
    this.offer = { ...offer, labelled: kept.length };
    if (kept.length) void this.store({ rows: kept, code: offer.label, source: "suggested", shown: set.length, out: before, model: offer.model ?? undefined });
    const out = this.order.find((row) => !picks.has(row) && this.codes[row] === UNLABELLED);
    this.setPicks(() => picks.deleteAll(kept));
    if (out !== undefined) this.setCurrent(out);
  }

  accept(): void {
    if (this.offer && this.offer.labelled === null) return this.acceptPage();
    if (this.offer && !this.picks.count) return void this.notify("info", "This page is done: o brings the next one.");
    const rows = this.targets();
    if (!this.prediction) {
      this.notify("info", "There are no suggestions yet: label some cells, then retrain (t).");
      return;
    }
    const groups = new Map<number, number[]>();
    for (const row of rows) {
      const code = this.prediction[row] as number;
      if (code < 0) continue;
      const group = groups.get(code);
      if (group) group.push(row);
      else groups.set(code, [row]);
    }
    if (!groups.size) this.notify("info", "None of these cells has a suggestion.");
    for (const [code, members] of groups) {
      const of = Uint32Array.from(members);
      void this.store({ rows: of, code, source: "suggested", shown: members.filter((row) => this.seen.has(row)).length });
    }
    if (this.picks.count) this.setPicks(() => this.picks.clear());
    else if (groups.size) this.advance();
  }

  /** Sends labels; they count as stored, and are shown as such, only once the answer is there. */
  private store(pending: Pending): Promise<unknown> {
    this.unsent.replaced(pending.rows);
    return (this.stored = Promise.all([this.stored, this.send(pending)]).then(() => {}));
  }

  private async send(pending: Pending): Promise<void> {
    const key = this.counter++;
    const start = this.keyAt || performance.now();
    this.keyAt = 0;
    this.pending.set(key, pending);
    this.emit("pending");
    try {
      const { rows, code, source, shown, out, model } = pending;
      const { header, buffers } = await this.link.request("assign", { class: code, source, shown, model }, out?.length ? [rows, out] : [rows]);
      this.pending.delete(key);
      if (buffers.length >= 2) this.applyCodes(new Uint32Array(buffers[0] as ArrayBuffer), new Int16Array(buffers[1] as ArrayBuffer));
      else this.applyCodes(pending.rows, pending.code);
      this.takeCounts(header);
      if (hasSorted(pending.rows, this.current)) this.emit("details");
      this.timings["label_ms"] = performance.now() - start;
      this.later();
    } catch (error) {
      this.pending.delete(key);
      if (error instanceof ConnectionLost) this.unsent.add(pending, error.request);
      else this.fail(`Not stored: ${pending.rows.length} × ${this.nameOf(pending.code)}`, error);
    }
    this.emit("pending");
  }

  /** An answer that came when nobody waited for it any more: the label is stored. */
  private late(request: number, { header, buffers }: Reply): void {
    if (header["ok"] === false) return;
    this.unsent.confirmed(request);
    if ("event" in header && buffers.length >= 2) this.applyCodes(new Uint32Array(buffers[0] as ArrayBuffer), new Int16Array(buffers[1] as ArrayBuffer));
  }

  /** One notice offers all labels that were not confirmed, as long as there are some and a connection. */
  private tellUnsent(): void {
    const { cells } = this.unsent;
    if (!cells) this.notices = this.notices.filter((notice) => notice.key !== UNSENT);
    else if (this.connection === "open") {
      this.notify("error", `The connection was lost before ${cells === 1 ? "1 label was" : `${count(cells)} labels were`} confirmed. The labels shown are those that are stored.`, [
        ["Send again", () => this.unsent.takeAll().forEach((pending) => void this.store(pending))],
        ["Discard", () => this.unsent.takeAll()],
      ], true, UNSENT);
    }
    this.emit("notices", "pending", "counts");
  }

  private summaryTimer = 0;
  private summaryAt = 0;

  /** The progress is read in pauses, and every ten seconds where there is none. */
  private later(): void {
    window.clearTimeout(this.summaryTimer);
    const pause = performance.now() - this.summaryAt > 10_000 ? 300 : 1500;
    this.summaryTimer = window.setTimeout(() => void this.loadSummary(), pause);
  }

  async step(type: "undo" | "redo"): Promise<void> {
    if (this.hello.readonly) {
      this.notify("error", "This store is read-only: labels cannot be changed.");
      return;
    }
    const last = type === "undo" ? this.unsent.takeLast() : undefined;
    if (last) return void this.notify("info", `Taken back: ${last.rows.length === 1 ? "1 label that was" : `${count(last.rows.length)} labels that were`} not stored.`);
    const reply = await this.ask(`${type === "undo" ? "Not undone" : "Not done again"}`, type);
    if (!reply) return;
    this.left = null;
    if (this.offer?.labelled != null) this.offer = null;
    this.emit("picks");
    if (reply.header["event"] === null) this.notify("info", `There is nothing to ${type}.`);
    else if (reply.buffers.length >= 2) {
      const rows = new Uint32Array(reply.buffers[0] as ArrayBuffer);
      this.applyCodes(rows, new Int16Array(reply.buffers[1] as ArrayBuffer));
      this.notify("info", `${type === "undo" ? "Undone" : "Done again"}: ${rows.length} ${rows.length === 1 ? "cell" : "cells"}.`);
    }
    this.takeCounts(reply.header);
    this.emit("details");
    this.later();
  }

  async changeClass(fields: Header): Promise<LabelClass[] | null> {
    const reply = await this.ask("The classes were not changed", "classes", fields);
    if (!reply) return null;
    this.classes = reply.header["classes"] as LabelClass[];
    this.takeCounts(reply.header);
    if (reply.buffers.length >= 2) this.applyCodes(new Uint32Array(reply.buffers[0] as ArrayBuffer), new Int16Array(reply.buffers[1] as ArrayBuffer));
    else if (fields["op"] === "remove") {
      await this.loadLabels().catch((error) => this.fail("The labels could not be read again", error));
    }
    this.emit("classes", "labels");
    return this.classes;
  }

  async addClass(name: string): Promise<LabelClass | undefined> {
    const known = new Set(this.classIds);
    const classes = await this.changeClass({ op: "add", name });
    return classes?.find((c) => !known.has(c.id)); // the server may have written the name in another way
  }

  // ---- the gallery's cells, picks and the current cell

  showSet(rows: Uint32Array, name: string, reasons: string[] = [], offer: Offer | null = null): void {
    this.set = this.order = rows;
    this.setName = name;
    this.setReasons = reasons;
    this.offer = offer;
    this.picks.clear();
    if (offer) this.picks.addAll(rows);
    this.seen.clear();
    this.current = rows.length ? (rows[0] as number) : -1;
    this.emit("set", "picks", "current");
  }

  setPicks(change: () => void): void {
    change();
    this.emit("picks");
  }

  setCurrent(row: number): void {
    if (row === this.current) return;
    this.current = row;
    this.emit("current");
  }

  /** A cell clicked in the map or the tissue: it alone is acted on. */
  single(row: number): void {
    this.offer = null;
    this.picks.clear();
    this.current = row;
    this.emit("picks", "current");
  }

  /** No picks any more, and no page to accept. */
  drop(): void {
    this.offer = null;
    this.setPicks(() => this.picks.clear());
  }

  private advance(): void {
    const { order } = this;
    const at = order.indexOf(this.current);
    if (at < 0) return;
    for (let k = 1; k < order.length; k++) {
      const row = order[(at + k) % order.length] as number;
      if (this.codes[row] === UNLABELLED && !this.isPending(row)) return this.setCurrent(row);
    }
    if (at + 1 < order.length) this.setCurrent(order[at + 1] as number);
  }

  isPending(row: number): boolean {
    for (const p of this.pending.values()) if (hasSorted(p.rows, row)) return true;
    for (const p of this.unsent.list) if (hasSorted(p.rows, row)) return true;
    return false;
  }

  async queue(n: number): Promise<void> {
    const reply = await this.ask("The queue could not be made", "queue", { n });
    if (!reply) return;
    const rows = new Uint32Array(reply.buffers[0] as ArrayBuffer);
    if (!rows.length) this.notify("info", "The queue is empty: every cell has a label.");
    else this.showSet(rows, "queue", (reply.header["reasons"] ?? []) as string[]);
  }

  private get labelledClasses(): number {
    return this.classes.filter((c) => (this.counts.by_class[String(c.id)] ?? 0) > 0).length;
  }

  /** A model tells classes apart. */
  get trainable(): boolean {
    return this.labelledClasses > 1;
  }

  /** What there must be before pages of suggestions can be made; nothing where all is there. */
  lacking(): string {
    if (this.model) return "";
    const labelled = this.labelledClasses;
    if (!this.trainable) return `There are no suggestions yet: label a few cells of ${labelled ? "another class" : "at least two classes"}, then retrain (t).`;
    return "There are no suggestions yet: retrain first (t).";
  }

  /** The page of suggestions of one class that is worth most, all of them picked. */
  async nextPage(): Promise<void> {
    const lacking = this.lacking();
    if (lacking) return void this.notify("info", lacking);
    await this.stored; // what was just accepted is not to come again
    const { left } = this;
    this.left = null;
    const reply = await this.ask("The next page could not be made", "offer", { n: this.perPage, ...(left ? { out: left.label } : {}) }, left ? [left.rows] : []);
    if (!reply) return;
    const [label, rows] = [reply.header["class"] as number | null, new Uint32Array(reply.buffers[0] as ArrayBuffer)];
    if (label === null || !rows.length) this.notify("info", "No suggestions are left: every cell has a label, or was taken out of a page.");
    else this.showSet(rows, `suggested: ${this.nameOf(label)}`, [], { label, expected: Number(reply.header["expected"] ?? 0), model: (reply.header["model"] ?? null) as string | null, labelled: null });
  }

  async search(picture?: ArrayBuffer): Promise<void> {
    if (!picture && this.current < 0) {
      this.notify("info", "Choose a cell first: the search is for cells like it.");
      return;
    }
    const reply = picture
      ? await this.ask("The search failed", "search", {}, [new Uint8Array(picture)])
      : await this.ask("The search failed", "search", { row: this.current });
    if (reply && !reply.buffers[0]?.byteLength) this.notify("info", "There are no other cells to find.");
    else if (reply) this.showSet(new Uint32Array(reply.buffers[0] as ArrayBuffer), picture ? "like the picture" : "like this cell");
  }


}
