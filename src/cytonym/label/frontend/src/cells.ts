// What is known of every cell: label, suggestion, columns, its place in a map, and the colour it has there.

import { Bus } from "./bus.ts";
import { codeIndices, FIRST_CLASS } from "./colors.ts";
import { NOT_A_CELL, UNLABELLED, UNSURE, type Hello, type LabelClass, type ModelInfo } from "./protocol.ts";

export interface Column {
  kind: "codes" | "scale";
  low: number;
  high: number;
  values: Int16Array | Uint8Array;
}

export type Filter = "all" | "unlabelled" | "labelled" | "discordant";
export const FILTERS: Filter[] = ["all", "unlabelled", "labelled", "discordant"];
const NOWHERE = 65535;

export class Cells extends Bus {
  hello!: Hello;
  classes: LabelClass[] = [];
  codes = new Int16Array(0);
  prediction: Int16Array | null = null;
  confidence: Uint8Array | null = null;
  columns = new Map<string, Column>();
  model: ModelInfo | null = null;

  points: Uint16Array | null = null;
  pointsRange: { x: [number, number]; y: [number, number] } = { x: [0, 1], y: [0, 1] };
  map = "";
  coloring = "label";
  filter: Filter = "all";
  private nowhere: Uint8Array | undefined; // 1 where a cell has no place in this map
  hidden: Uint8Array | undefined; // 1 where the filter leaves a cell out
  private columnRequests = new Map<string, Promise<Column | null>>();

  // ---- columns and maps

  protected async loadLabels(): Promise<void> {
    const { buffers } = await this.link.request("column", { name: "label" });
    this.codes = new Int16Array(buffers[0] as ArrayBuffer);
  }

  async loadMap(map: string): Promise<void> {
    await this.loadPoints(map);
    this.emit("points");
  }

  protected async loadPoints(map: string): Promise<void> {
    if (!map) {
      this.map = "";
      this.points = null;
      return;
    }
    const reply = await this.ask("The map could not be loaded", "points", { map });
    if (!reply) return;
    this.map = map;
    this.points = new Uint16Array(reply.buffers[0] as ArrayBuffer);
    this.pointsRange = { x: reply.header["x"] as [number, number], y: reply.header["y"] as [number, number] };
    this.nowhere = undefined;
    for (let i = 0; i < this.points.length; i += 2) {
      if (this.points[i] !== NOWHERE || this.points[i + 1] !== NOWHERE) continue;
      this.nowhere ??= new Uint8Array(this.points.length >> 1);
      this.nowhere[i >> 1] = 1;
    }
    this.refilter();
  }

  async loadPredictions(): Promise<void> {
    if (!this.model) {
      this.prediction = this.confidence = null;
      return;
    }
    const prediction = await this.column("prediction", true);
    const confidence = await this.column("confidence", true);
    this.prediction = prediction?.kind === "codes" ? (prediction.values as Int16Array) : null;
    this.confidence = confidence?.kind === "scale" ? (confidence.values as Uint8Array) : null;
    this.refilter();
    this.emit("model", "labels");
  }

  /** A column of one value per cell, kept once loaded. */
  async column(name: string, fresh = false): Promise<Column | null> {
    if (!fresh && this.columns.has(name)) return this.columns.get(name) as Column;
    let running = this.columnRequests.get(name);
    if (!running) {
      running = this.ask(`“${name}” could not be loaded`, "column", { name }).then((reply) => {
        this.columnRequests.delete(name);
        if (!reply) return null;
        const { header, buffers } = reply;
        const kind = header["kind"] as Column["kind"];
        const buffer = buffers[0] as ArrayBuffer;
        const values = kind === "codes" ? new Int16Array(buffer) : new Uint8Array(buffer);
        const column = { kind, low: Number(header["low"] ?? 0), high: Number(header["high"] ?? 1), values };
        this.columns.set(name, column);
        return column;
      });
      this.columnRequests.set(name, running);
    }
    return running;
  }

  // ---- labels and classes

  protected applyCodes(rows: Uint32Array, codes: Int16Array | number): void {
    for (let i = 0; i < rows.length; i++) this.codes[rows[i] as number] = typeof codes === "number" ? codes : (codes[i] as number);
    if (this.filter !== "all") this.refilter();
    this.emit("labels");
  }

  get classIds(): number[] {
    return this.classes.map((c) => c.id);
  }

  classOf(code: number): LabelClass | undefined {
    return this.classes.find((c) => c.id === code);
  }

  nameOf(code: number): string {
    if (code === UNLABELLED) return "no label";
    if (code === UNSURE) return "unsure";
    if (code === NOT_A_CELL) return "not a cell";
    return this.classOf(code)?.name ?? `class ${code}`;
  }

  // ---- colours and filters of the map

  discordant(row: number): boolean {
    const [code, guess] = [this.codes[row] as number, this.prediction ? (this.prediction[row] as number) : -1];
    return code >= 0 && guess >= 0 && code !== guess;
  }

  setColoring(name: string): void {
    this.coloring = name;
    this.emit("coloring");
  }

  setFilter(filter: Filter): void {
    this.filter = filter;
    this.refilter();
    this.emit("filter");
  }

  private refilter(): void {
    if (this.filter === "all") {
      this.hidden = this.nowhere;
      return;
    }
    const hidden = this.nowhere?.slice() ?? new Uint8Array(this.codes.length);
    for (let i = 0; i < hidden.length; i++) {
      const labelled = this.codes[i] !== UNLABELLED;
      const kept = this.filter === "unlabelled" ? !labelled : this.filter === "labelled" ? labelled : this.discordant(i);
      if (!kept) hidden[i] = 1;
    }
    this.hidden = hidden;
  }

  /** One byte per cell for the colours of the map, and whether it is a scale. */
  async colorBytes(): Promise<{ values: Uint8Array; scale: Column | null }> {
    const out = new Uint8Array(this.codes.length);
    if (this.coloring === "label") codeIndices(this.codes, this.classIds, out);
    else if (this.coloring === "prediction") {
      if (this.prediction) codeIndices(this.prediction, this.classIds, out);
    } else if (this.coloring === "discordant") {
      for (let i = 0; i < out.length; i++) out[i] = this.discordant(i) ? FIRST_CLASS + 1 : (this.codes[i] as number) >= 0 ? FIRST_CLASS : 0;
    } else {
      const column = await this.column(this.coloring);
      if (column?.kind === "scale") return { values: column.values as Uint8Array, scale: column };
      if (column) codeIndices(column.values as Int16Array, this.classIds, out);
    }
    return { values: out, scale: null };
  }
}
