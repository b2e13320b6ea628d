// A server in the page: made-up cells in a made-up tissue, and answers as cytonym.label.desk gives them.
import { CLASS_COLORS, nextColor } from "../src/colors.ts";
import type { Transport } from "../src/link.ts";
import type { Header, LabelClass } from "../src/protocol.ts";

interface Options {
  cells: number;
  classes: number;
  channels: number;
  rgb: boolean;
  image: boolean;
  labelled: number;
}

const KINDS = ["CD8 T cell", "Tumour", "Macrophage", "B cell", "Endothelium", "Fibroblast"];
const MARKERS = ["DAPI", "CD8", "panCK", "CD68", "CD20", "CD31", "SMA", "Ki67"];
const PITCH = 22;

function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export class Fake implements Transport {
  onMessage: Transport["onMessage"] = () => {};
  onState: Transport["onState"] = () => {};
  down = false;
  private kind: Uint8Array;
  private place: Float32Array;
  private umap: Uint16Array;
  private codes: Int16Array;
  private guess: Int16Array;
  private sure: Uint8Array;
  private classes: LabelClass[];
  private names: string[];
  private side: number;
  private version = 0;
  private done: { rows: Uint32Array; before: Int16Array; after: number }[] = [];
  private undone: typeof this.done = [];
  private notes = new Map<number, string>();

  constructor(private o: Options) {
    const next = random(1);
    const normal = (): number => Math.sqrt(-2 * Math.log(next() + 1e-12)) * Math.cos(6.2832 * next());
    const n = o.cells;
    this.classes = Array.from({ length: o.classes }, (_, k) => ({ id: k, name: KINDS[k] ?? `Class ${k + 1} with a rather long name, äöü 細胞`, color: CLASS_COLORS[k] ?? "" }));
    this.classes.forEach((c, k) => (c.color ||= nextColor(this.classes.slice(0, k).map((d) => d.color))));
    this.names = Array.from({ length: o.channels }, (_, k) => MARKERS[k] ?? `Marker ${k + 1}`);
    this.kind = new Uint8Array(n);
    this.place = new Float32Array(2 * n);
    this.umap = new Uint16Array(2 * n);
    const columns = Math.ceil(Math.sqrt(n));
    this.side = columns * PITCH;
    for (let i = 0; i < n; i++) {
      const [c, r] = [i % columns, Math.floor(i / columns)];
      const [x, y] = [(c + 0.5 + 0.3 * normal() * 0.5) * PITCH, (r + 0.5 + 0.3 * normal() * 0.5) * PITCH];
      this.place.set([y, x], 2 * i);
      const nest = Math.sin(x / 170) * Math.cos(y / 210) + 0.25 * normal();
      const kind = nest > 0.45 ? 1 : nest < -0.5 ? (next() < 0.6 ? 3 : 0) : Math.floor(next() * 6);
      this.kind[i] = kind;
      const arm = next();
      const [px, py] = [20000 + 9000 * (kind % 3) + 1700 * normal() + 2400 * Math.cos(arm * 5 + kind), 22000 + 18000 * Math.floor(kind / 3) + 1900 * normal() + 3000 * Math.sin(arm * 4 + kind)];
      this.umap.set([Math.max(0, Math.min(65534, px)), Math.max(0, Math.min(65534, py))], 2 * i);
    }
    this.codes = new Int16Array(n).fill(-1);
    this.guess = new Int16Array(n).fill(-1);
    this.sure = new Uint8Array(n).fill(255);
    for (let k = 0; k < Math.min(o.labelled, n); k++) {
      const i = Math.floor(next() * n);
      this.codes[i] = (this.kind[i] as number) % Math.max(1, o.classes);
    }
    if (o.labelled) this.train();
  }

  private train(): void {
    const next = random(7 + this.version);
    this.version++;
    for (let i = 0; i < this.guess.length; i++) {
      const wrong = next() < 0.1;
      this.guess[i] = (wrong ? Math.floor(next() * 6) : (this.kind[i] as number)) % Math.max(1, this.o.classes);
      this.sure[i] = 254 * (wrong ? 0.35 + 0.3 * next() : 0.6 + 0.4 * next());
    }
  }

  private get model(): Header | null {
    return this.version ? { version: `v${this.version}`, trained_on: this.codes.filter((c) => c >= 0).length } : null;
  }

  open(): void {
    setTimeout(() => this.onState("open", ""), 0);
  }

  close(): void {}

  retry(): void {
    this.down = false;
    this.onState("open", "");
  }

  lose(): void {
    this.down = true;
    this.onState("lost", "The connection to the server was lost.");
  }

  send(header: Header, buffers: ArrayBufferView[]): void {
    if (this.down) return;
    const copies = buffers.map((b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength) as ArrayBuffer);
    setTimeout(() => {
      if (this.down) return;
      let answer: [Header, ArrayBufferView[]];
      try {
        answer = [{ ok: true }, []];
        const [told, out] = this.answer(header, copies);
        answer = [{ ok: true, ...told }, out];
      } catch (error) {
        answer = [{ ok: false, error: String(error) }, []];
      }
      this.onMessage({ ...answer[0], re: header["id"] }, answer[1].map((b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength) as ArrayBuffer));
    }, 5);
  }

  private counts(): Header {
    const by: { [id: string]: number } = {};
    let [labelled, unsure, notCell] = [0, 0, 0];
    for (const code of this.codes) {
      if (code === -1) continue;
      labelled++;
      if (code === -2) unsure++;
      else if (code === -3) notCell++;
      else by[code] = (by[code] ?? 0) + 1;
    }
    return { counts: { total: this.codes.length, labelled, by_class: by, unsure, not_cell: notCell }, can_undo: this.done.length > 0, can_redo: this.undone.length > 0 };
  }

  /** The pixel of one channel: nucleus, rings in the colours of the kind, texture. */
  private pixel(channel: number, y: number, x: number, at: { row: number; d: number }): number {
    const grain = ((Math.imul((y * 7919 + x) | 0, 2654435761) >>> 24) / 255) * 60;
    if (at.row < 0) return grain;
    const kind = this.kind[at.row] as number;
    if (channel === 0) return grain + (at.d < 5 ? 1500 - 120 * at.d : 0);
    const stains = [1, 2, 3, 4, 5, 6][kind] === channel || (channel === 7 && at.row % 9 === 0);
    if (!stains) return grain;
    return grain + (at.d > 4 && at.d < 8.5 ? 1300 : at.d <= 4 ? 350 : 0) * (0.6 + ((at.row * 37) % 50) / 80);
  }

  private cellAt(y: number, x: number): { row: number; d: number } {
    const columns = Math.ceil(Math.sqrt(this.codes.length));
    let best = { row: -1, d: 8.5 };
    const [c, r] = [Math.floor(x / PITCH), Math.floor(y / PITCH)];
    for (let dr = -1; dr <= 1; dr++) {
      for (let dc = -1; dc <= 1; dc++) {
        if (c + dc < 0 || c + dc >= columns) continue;
        const row = (r + dr) * columns + c + dc;
        if (row < 0 || row >= this.codes.length) continue;
        const d = Math.hypot(y - (this.place[2 * row] as number), (x - (this.place[2 * row + 1] as number)) * (1 + (row % 3) * 0.1));
        if (d < best.d) best = { row, d };
      }
    }
    return best;
  }

  private fill(out: Uint16Array | Uint8Array, from: number, channels: number[], h: number, w: number, y0: number, x0: number, scale: number, rows: Uint32Array | null, own: number, outline: Uint8Array | null): void {
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const [py, px] = [y0 + y * scale, x0 + x * scale];
        const at = this.cellAt(py, px);
        if (rows) rows[y * w + x] = at.row + 1;
        if (outline && at.row === own && at.d > 7.6) outline[y * w + x] = 1;
        if (this.o.rgb) {
          const dark = at.row < 0 ? 0 : at.d < 5 ? 1 : 0.25;
          const brown = at.row >= 0 && this.kind[at.row] === 1 && at.d > 3 ? 1 : 0;
          const rgb = [238 - 120 * dark - 70 * brown, 232 - 110 * dark - 110 * brown, 240 - 60 * dark - 150 * brown];
          rgb.forEach((v, k) => (out[from + k * h * w + y * w + x] = Math.max(0, v - this.pixel(9, py, px, { row: -1, d: 0 }) / 6)));
        } else channels.forEach((channel, k) => (out[from + k * h * w + y * w + x] = this.pixel(channel, py | 0, px | 0, at)));
      }
    }
  }

  private answer(q: Header, buffers: ArrayBuffer[]): [Header, ArrayBufferView[]] {
    const n = this.codes.length;
    const all = this.o.rgb ? [0, 1, 2] : this.names.map((_, k) => k);
    switch (q["type"]) {
      case "hello":
        return [{
          protocol: 1, n, classes: this.classes, channels: this.o.image ? (this.o.rgb ? ["red", "green", "blue"] : this.names) : [], rgb: this.o.rgb, regions: [{ name: "image", first: 0, count: n, width: this.side, height: this.side }],
          maps: ["umap", "spatial"], markers: this.names, annotator: "Dr. Müller", ...this.counts(), model: this.model, has_image: this.o.image, patch_px: 32, title: "tonsil_07.zarr", readonly: false,
        }, []];
      case "points": {
        if (q["map"] === "umap") return [{ n, x: [-8, 12], y: [-6, 14] }, [this.umap]];
        const xy = new Uint16Array(2 * n);
        for (let i = 0; i < n; i++) xy.set([((this.place[2 * i + 1] as number) / this.side) * 65534, ((this.place[2 * i] as number) / this.side) * 65534], 2 * i);
        return [{ n, x: [0, this.side], y: [0, this.side] }, [xy]];
      }
      case "column": {
        const name = String(q["name"]);
        if (name === "label") return [{ kind: "codes" }, [this.codes]];
        if (name === "prediction") return [{ kind: "codes" }, [this.guess]];
        if (name === "confidence") return [{ kind: "scale", low: 0, high: 1 }, [this.sure]];
        const k = this.names.indexOf(name.slice(7));
        return [{ kind: "scale", low: 0, high: 1300 }, [Uint8Array.from({ length: n }, (_, i) => ((this.kind[i] as number) + 1 === k ? 160 + (i % 90) : i % 50))]];
      }
      case "gallery": {
        const rows = new Uint32Array(buffers[0] as ArrayBuffer);
        const channels = (q["channels"] as number[] | null) ?? all;
        const [c, s] = [channels.length, 32];
        const out = this.o.rgb ? new Uint8Array(rows.length * c * s * s) : new Uint16Array(rows.length * c * s * s);
        const outline = new Uint8Array(rows.length * s * s);
        rows.forEach((row, i) => this.fill(out, i * c * s * s, channels, s, s, (this.place[2 * row] as number) - 16, (this.place[2 * row + 1] as number) - 16, 1, null, row, outline.subarray(i * s * s, (i + 1) * s * s)));
        return [{ n: rows.length, c, size: s, dtype: this.o.rgb ? "u1" : "u2", limits: channels.map(() => (this.o.rgb ? [0, 255] : [60, 1500])), mask: true, channels }, [out, outline]];
      }
      case "context": {
        const channels = (q["channels"] as number[] | null) ?? all;
        const [y, x] = [Math.max(0, Number(q["y"])), Math.max(0, Number(q["x"]))];
        const scale = Math.max(1, Math.ceil(Math.max(Number(q["h"]), Number(q["w"])) / Number(q["px"])));
        const h = Math.max(1, Math.floor(Math.min(Number(q["h"]) - (y - Number(q["y"])), this.side - y) / scale));
        const w = Math.max(1, Math.floor(Math.min(Number(q["w"]) - (x - Number(q["x"])), this.side - x) / scale));
        const out = this.o.rgb ? new Uint8Array(channels.length * h * w) : new Uint16Array(channels.length * h * w);
        const rows = new Uint32Array(h * w);
        this.fill(out, 0, channels, h, w, y, x, scale, rows, -1, null);
        return [{ c: channels.length, h, w, dtype: this.o.rgb ? "u1" : "u2", scale, y, x, channels, limits: channels.map(() => (this.o.rgb ? [0, 255] : [60, 1500])) }, [out, rows]];
      }
      case "assign": {
        const rows = new Uint32Array(buffers[0] as ArrayBuffer);
        const code = Number(q["class"]);
        this.done.push({ rows, before: Int16Array.from(rows, (r) => this.codes[r] as number), after: code });
        this.undone = [];
        for (const row of rows) this.codes[row] = code;
        return [{ event: "e", changed: rows.length, ...this.counts() }, []];
      }
      case "undo":
      case "redo": {
        const step = (q["type"] === "undo" ? this.done : this.undone).pop();
        if (!step) throw new Error("Nothing to take back.");
        (q["type"] === "undo" ? this.undone : this.done).push(step);
        const codes = q["type"] === "undo" ? step.before : step.before.slice().fill(step.after);
        step.rows.forEach((row, i) => (this.codes[row] = codes[i] as number));
        return [this.counts(), [step.rows, codes]];
      }
      case "classes": {
        if (q["op"] === "add") this.classes.push({ id: Math.max(-1, ...this.classes.map((c) => c.id)) + 1, name: String(q["name"]), color: String(q["color"]) });
        const c = this.classes.find((d) => d.id === q["class"]);
        if (q["op"] === "rename" && c) c.name = String(q["name"]);
        if (q["op"] === "color" && c) c.color = String(q["color"]);
        if (q["op"] === "remove" && c) {
          this.classes = this.classes.filter((d) => d !== c);
          this.codes.forEach((code, i) => code === c.id && (this.codes[i] = q["into"] === null ? -1 : Number(q["into"])));
        }
        return [{ classes: [...this.classes], ...this.counts() }, []];
      }
      case "note":
        this.notes.set(Number(q["row"]), String(q["text"]));
        return [{}, []];
      case "cell": {
        const row = Number(q["row"]);
        const kind = this.kind[row] as number;
        const label = this.codes[row] as number;
        return [{
          row, name: `cell_${row}`, region: "image", instance: row + 1, label, by: label === -1 ? null : "Dr. Müller", time: "2026-11-20T10:12:00Z", note: this.notes.get(row) ?? null, prediction: this.guess[row],
          probabilities: this.version ? this.classes.map((c) => [c.id, c.id === this.guess[row] ? 0.81 : 0.19 / Math.max(1, this.classes.length - 1)]) : [],
          markers: this.names.map((name, k) => [name, k === kind + 1 ? 912.5 + (row % 90) : 40 + ((row * 7 + k * 31) % 60)]),
          history: label === -1 ? [] : [{ time: "2026-11-20T10:02:00Z", by: "Dr. Müller", label: "unsure", code: -2, source: "single", undone: true }, { time: "2026-11-20T10:12:00Z", by: "Dr. Müller", label: "x", code: label, source: "bulk" }],
          y: this.place[2 * row], x: this.place[2 * row + 1],
        }, []];
      }
      case "queue": {
        const rows = Array.from({ length: n }, (_, i) => i).filter((i) => this.codes[i] === -1).sort((a, b) => (this.sure[a] as number) - (this.sure[b] as number)).slice(0, Number(q["n"]));
        return [{ reasons: rows.map(() => "uncertain") }, [Uint32Array.from(rows)]];
      }
      case "offer": {
        const open = Array.from({ length: n }, (_, i) => i).filter((i) => this.codes[i] === -1 && (this.guess[i] as number) >= 0);
        const label = open.length ? (this.guess[open[0] as number] as number) : null;
        const rows = open.filter((i) => this.guess[i] === label).sort((a, b) => (this.sure[b] as number) - (this.sure[a] as number)).slice(0, Number(q["n"]));
        return [{ class: label, expected: Math.round(0.94 * rows.length) }, [Uint32Array.from(rows)]];
      }
      case "search": {
        const kind = this.kind[Number(q["row"])];
        return [{ distances: [] }, [Uint32Array.from({ length: n }, (_, i) => i).filter((i) => this.kind[i] === kind).slice(0, 100)]];
      }
      case "retrain":
        setTimeout(() => {
          this.train();
          this.onMessage({ type: "model", ...this.model, seconds: 0.42 }, []);
        }, 300);
        return [{ started: true }, []];
      case "remap":
      case "finetune": {
        let done = 0;
        const timer = setInterval(() => {
          done++;
          this.onMessage({ type: "job", name: q["type"], done, total: 20, text: "epoch 2 of 5", state: done < 20 ? "running" : "done" }, []);
          if (done === 20) clearInterval(timer);
        }, 200);
        return [{ started: true }, []];
      }
      case "summary":
        return [{
          annotators: { "Dr. Müller": { labels_per_second: 3.1, ratio: 7.2 } }, disagreements: 12,
          stop: this.version ? { changes: [0.1], suggested: this.version > 2, reason: this.version > 2 ? "The last 3 trainings changed less than 1% of the suggestions." : "New labels still change suggestions." } : undefined,
          precision: this.version ? this.classes.slice(0, 8).map((c, k) => ({ class: c.id, name: c.name, checked: 40 + 7 * k, confirmed: 38, precision: 0.97 - 0.06 * k, low: 0.88 - 0.08 * k, high: 0.995 - 0.05 * k })) : [],
        }, []];
      case "export":
        return [{ name: "labels.csv", folder: "tonsil_07_labels" }, []];
      default:
        return [{}, []];
    }
  }
}
