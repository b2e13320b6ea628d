// Labels that were not confirmed, and what is kept of them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { readKept, Unsent } from "../src/unsent.ts";

class Memory {
  private items = new Map<string, string>();
  get length(): number {
    return this.items.size;
  }
  key = (k: number): string | null => [...this.items.keys()][k] ?? null;
  getItem = (name: string): string | null => this.items.get(name) ?? null;
  setItem = (name: string, value: string): void => void this.items.set(name, value);
  removeItem = (name: string): void => void this.items.delete(name);
  clear = (): void => this.items.clear();
}

const label = (code: number, ...rows: number[]) => ({ rows: Uint32Array.from(rows), code, source: "bulk", shown: rows.length });
const told = (unsent: Unsent): [number, number[]][] => unsent.list.map(({ code, rows }) => [code, [...rows]]);

function made(memory: Memory | null, store = "a", n = 100): Unsent {
  const unsent = new Unsent(memory, () => {});
  unsent.open(store, n);
  return unsent;
}

test("a later page takes up what was left, in its order, once", () => {
  const memory = new Memory();
  const first = made(memory);
  first.add(label(1, 3, 4));
  first.add(label(2, 9));
  assert.deepEqual(told(made(memory, "another")), []);
  assert.deepEqual(told(made(memory, "a", 5)), [[1, [3, 4]]]); // of fewer cells
  const second = made(memory);
  assert.deepEqual(told(second), [[1, [3, 4]], [2, [9]]]);
  assert.deepEqual(second.takeAll().map(({ code }) => code), [1, 2]);
  assert.equal(memory.length, 0);
  assert.equal(made(memory).cells, 0);
});

test("a newer label takes the place of one that was not sent", () => {
  const memory = new Memory();
  const unsent = made(memory);
  unsent.add(label(1, 3, 4, 5));
  unsent.add(label(2, 9));
  unsent.replaced(Uint32Array.of(4, 9));
  assert.deepEqual(told(unsent), [[1, [3, 5]]]);
  assert.deepEqual(told(made(memory)), [[1, [3, 5]]]);
});

test("the newest is taken back first, and late answers count", () => {
  const unsent = made(null);
  unsent.add(label(1, 1), 17);
  unsent.add(label(2, 2), 18);
  unsent.add(label(3, 3), 19);
  unsent.confirmed(18);
  unsent.confirmed(18);
  assert.equal(unsent.takeLast()?.code, 3);
  assert.deepEqual(told(unsent), [[1, [1]]]);
  unsent.takeLast();
  assert.equal(unsent.takeLast(), undefined);
});

test("two pages that took up the same do not both send it", () => {
  const memory = new Memory();
  made(memory).add(label(1, 3));
  const [one, other] = [made(memory), made(memory)];
  const name = memory.key(0);
  one.takeAll();
  other.heard(name, memory.getItem(name as string));
  assert.equal(other.cells, 0);
  other.add(label(2, 7));
  other.heard("something else", null);
  assert.equal(other.cells, 1);
});

test("what was taken out of a page is kept with its labels", () => {
  const memory = new Memory();
  const page = { ...label(1, 3, 4), source: "suggested", out: Uint32Array.of(8), model: "v1" };
  made(memory).add(page);
  assert.deepEqual(made(memory).takeLast(), page);
});

test("nothing is kept without a store, a full or foreign memory does no harm", () => {
  const memory = new Memory();
  made(memory, "").add(label(1, 3));
  assert.equal(memory.length, 0);
  memory.setItem = () => {
    throw new Error("full");
  };
  const unsent = made(memory);
  unsent.add(label(1, 3));
  assert.equal(unsent.cells, 1);
  for (const text of [null, "", "{", "3", "[]", "{}", '{"rows":[-1],"code":1,"source":"x","shown":1}', '{"rows":[1.5],"code":1,"source":"x","shown":1}', '{"rows":[1],"code":"<b>","source":"x","shown":1}']) assert.equal(readKept(text, 10), null, String(text));
});
