// Labels that the server did not confirm before the connection was lost. They stay in the browser until they are sent again, given
// anew, or dropped, so that closing the page loses none of them.

import type { Pending } from "./state.ts";

interface Kept {
  rows: number[];
  code: number;
  source: string;
  shown: number | null;
  out?: number[];
  model?: string;
}

const PREFIX = "cytonym-label-unsent:";
const key = (store: string, id: string): string => `${PREFIX}${store}:${id}`;
const whole = (value: unknown): value is number => Number.isInteger(value);

/** What was kept of one entry, if all of it is of this table. */
export function readKept(text: string | null, n: number): Pending | null {
  try {
    const { rows, code, source, shown, out = [], model } = JSON.parse(text ?? "null") as Kept;
    const usable = [rows, out].every((some) => Array.isArray(some) && some.every((row) => whole(row) && row >= 0 && row < n));
    if (!usable || !rows.length || !whole(code) || typeof source !== "string" || !(shown === null || whole(shown)) || !["string", "undefined"].includes(typeof model)) return null;
    return { rows: Uint32Array.from(rows), code, source, shown, ...(out.length ? { out: Uint32Array.from(out) } : {}), ...(model ? { model } : {}) };
  } catch {
    return null;
  }
}

export class Unsent {
  private entries = new Map<string, Pending>(); // oldest first
  private requests = new Map<number, string>();
  private store = "";
  private n = 0;
  private counter = 0;
  private own = Math.random().toString(36).slice(2, 10); // several pages of one store keep theirs side by side

  constructor(private storage: Storage | null, private changed: () => void) {}

  get list(): Pending[] {
    return [...this.entries.values()];
  }

  get cells(): number {
    return this.list.reduce((sum, { rows }) => sum + rows.length, 0);
  }

  /** Takes up what an earlier page left for these cells; `store` names them, and is empty where nothing outlives the server. */
  open(store: string, n: number): void {
    if (store === this.store && n === this.n) return;
    this.store = store;
    this.n = n;
    this.entries.clear();
    this.requests.clear();
    for (const id of store ? this.ids() : []) {
      const kept = readKept(this.storage?.getItem(key(store, id)) ?? null, n);
      if (kept) this.entries.set(id, kept);
    }
    this.changed();
  }

  private ids(): string[] {
    const start = key(this.store, "");
    const names = Array.from({ length: this.storage?.length ?? 0 }, (_, k) => this.storage?.key(k) ?? "");
    return names.filter((name) => name.startsWith(start)).map((name) => name.slice(start.length)).sort();
  }

  add(pending: Pending, request = -1): void {
    const id = `${String(Date.now()).padStart(15, "0")}.${String(this.counter++).padStart(6, "0")}.${this.own}`;
    if (request >= 0) this.requests.set(request, id);
    this.keep(id, pending);
    this.changed();
  }

  /** These cells got a newer label. */
  replaced(rows: Uint32Array): void {
    if (!this.entries.size) return;
    const newer = new Set(rows);
    for (const [id, pending] of [...this.entries]) {
      const left = pending.rows.filter((row) => !newer.has(row));
      if (left.length === pending.rows.length) continue;
      if (left.length) this.keep(id, { ...pending, rows: left });
      else this.forget(id);
    }
    this.changed();
  }

  /** The answer came after all. */
  confirmed(request: number): void {
    const id = this.requests.get(request);
    if (id === undefined) return;
    this.forget(id);
    this.changed();
  }

  /** The newest entry, which is then no longer there. */
  takeLast(): Pending | undefined {
    const last = [...this.entries].pop();
    if (!last) return undefined;
    this.forget(last[0]);
    this.changed();
    return last[1];
  }

  /** All entries, oldest first, which are then no longer there. */
  takeAll(): Pending[] {
    const taken = this.list;
    for (const id of [...this.entries.keys()]) this.forget(id);
    this.changed();
    return taken;
  }

  /** Another page of this store sent, changed or dropped an entry that both took up. */
  heard(name: string | null, value: string | null): void {
    const start = key(this.store, "");
    const id = name?.slice(start.length) ?? "";
    if (!this.store || !name?.startsWith(start) || !this.entries.has(id)) return;
    const kept = readKept(value, this.n);
    if (kept) this.entries.set(id, kept);
    else this.entries.delete(id);
    this.changed();
  }

  private keep(id: string, pending: Pending): void {
    this.entries.set(id, pending);
    if (!this.store) return;
    const kept: Kept = { ...pending, rows: [...pending.rows], out: pending.out ? [...pending.out] : undefined };
    try {
      this.storage?.setItem(key(this.store, id), JSON.stringify(kept));
    } catch {
      // full: they stay as long as the page
    }
  }

  private forget(id: string): void {
    this.entries.delete(id);
    for (const [request, of] of this.requests) if (of === id) this.requests.delete(request);
    if (this.store) this.storage?.removeItem(key(this.store, id));
  }
}

/** The browser's memory for this address; a notebook may forbid it. */
export function browserStorage(): Storage | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
