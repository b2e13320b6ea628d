// Parts that need no browser.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Bitset } from "../src/bitset.ts";
import { CLASS_COLORS, classTable, codeIndices, contrast, nextColor, parseColor, scaleTable, textOn, THEMES } from "../src/colors.ts";
import { textureShape } from "../src/compositor.ts";
import { within } from "../src/context.ts";
import { short } from "../src/dom.ts";
import { sortedBy, takeLimits } from "../src/gallery.ts";
import { CLASS_KEYS, commandFor, goesOn, takesKeys, type Command } from "../src/keys.ts";
import { insidePolygon, lassoRows, nearestPoint, type Polygon } from "../src/lasso.ts";
import { ConnectionLost, Link, type Transport } from "../src/link.ts";
import { takenOut } from "../src/offer.ts";
import { densityImage } from "../src/points.ts";
import { decodeFrame, encodeFrame, ownBuffer } from "../src/protocol.ts";

const key = (name: string, more: Partial<{ shiftKey: boolean; ctrlKey: boolean; altKey: boolean; metaKey: boolean }> = {}) =>
  commandFor({ key: name, shiftKey: false, ctrlKey: false, metaKey: false, altKey: false, ...more });

function scatter(n: number): Uint16Array {
  const points = new Uint16Array(2 * n);
  let state = 12345;
  for (let i = 0; i < points.length; i++) points[i] = (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 16;
  return points;
}

test("the lasso finds exactly the points within, holes by the even-odd rule included", () => {
  const points = scatter(20000);
  const star: Polygon = Array.from({ length: 5 }, (_, k) => [32768 + 30000 * Math.cos(k * 2.513), 32768 + 30000 * Math.sin(k * 2.513)]);
  const thin: Polygon = [[100, 100], [65000, 300], [65000, 320]];
  for (const polygon of [star, thin]) {
    const wanted = [];
    for (let i = 0; i < 20000; i++) if (insidePolygon(points[2 * i] as number, points[2 * i + 1] as number, polygon)) wanted.push(i);
    assert.deepEqual([...lassoRows(points, polygon)], wanted);
  }
});

test("the lasso leaves out hidden points, and needs three corners", () => {
  const points = Uint16Array.of(10, 10, 20, 20, 200, 200);
  const square: Polygon = [[0, 0], [100, 0], [100, 100], [0, 100]];
  assert.deepEqual([...lassoRows(points, square)], [0, 1]);
  assert.deepEqual([...lassoRows(points, square, Uint8Array.of(1, 0, 0))], [1]);
  assert.equal(lassoRows(points, [[0, 0], [9, 9]]).length, 0);
});

test("a million points are lassoed within the time allowed", () => {
  const points = scatter(1_000_000);
  const circle: Polygon = Array.from({ length: 200 }, (_, k) => [32768 + 20000 * Math.cos(k / 31.8), 32768 + 20000 * Math.sin(k / 31.8)]);
  lassoRows(points.subarray(0, 20000), circle);
  const start = performance.now();
  const rows = lassoRows(points, circle);
  assert.ok(Math.abs(rows.length / 1e6 - (Math.PI * 20000 ** 2) / 65536 ** 2) < 0.005);
  assert.ok(performance.now() - start < 1000, "far from the 200 ms even on a busy machine");
});

test("the nearest point is found within the radius only", () => {
  const points = Uint16Array.of(10, 10, 30, 30);
  assert.equal(nearestPoint(points, 27, 27, 10, 10), 1);
  assert.equal(nearestPoint(points, 1000, 27, 10, 10), -1);
  assert.equal(nearestPoint(points, 27, 27, 10, 10, Uint8Array.of(0, 1)), -1);
});

test("a bitset counts, toggles and lists in order", () => {
  const set = new Bitset(100);
  set.addAll([99, 31, 32, 0, 31]);
  set.toggle(32);
  set.toggle(64);
  set.delete(5);
  assert.deepEqual([...set.rows()], [0, 31, 64, 99]);
  assert.equal(set.count, 4);
  assert.ok(set.has(31) && !set.has(32));
  set.clear();
  assert.equal(set.rows().length, 0);
});

test("a frame comes back as it was, with aligned buffers", () => {
  const frame = encodeFrame({ id: 7, type: "assign", name: "ü 細胞 <b>" }, [Uint32Array.of(1, 2, 3), Int16Array.of(-1, 5), new Uint8Array(0)]);
  assert.equal((4 + new DataView(frame).getUint32(0, true)) % 8, 0);
  const { header, buffers } = decodeFrame(frame);
  assert.deepEqual(header, { id: 7, type: "assign", name: "ü 細胞 <b>" });
  assert.deepEqual([...new Uint32Array(buffers[0] as ArrayBuffer)], [1, 2, 3]);
  assert.deepEqual([...new Int16Array(buffers[1] as ArrayBuffer)], [-1, 5]);
  assert.equal((buffers[2] as ArrayBuffer).byteLength, 0);
  assert.throws(() => decodeFrame(frame.slice(0, 12)));
  assert.throws(() => decodeFrame(frame.slice(0, frame.byteLength - 16)));
  assert.throws(() => decodeFrame(new ArrayBuffer(2)));
});

test("views into larger buffers are copied", () => {
  const bytes = Uint8Array.of(9, 1, 0, 2, 0, 9);
  assert.deepEqual([...new Uint16Array(ownBuffer(new DataView(bytes.buffer, 1, 4)))], [1, 2]);
});

test("answers reach their request, errors are errors, and a lost connection says so", async () => {
  const sent: { [field: string]: unknown }[] = [];
  const transport: Transport = { send: (header) => void sent.push(header), onMessage: () => {}, onState: () => {}, open: () => {}, close: () => {}, retry: () => {} };
  const link = new Link(transport);
  await assert.rejects(link.request("hello"), ConnectionLost);
  transport.onState("open", "");
  const [first, second, third] = [link.request("hello"), link.request("undo"), link.request("redo")];
  transport.onMessage({ re: (sent[1] as { id: number }).id, ok: false, error: "nothing to undo" }, []);
  transport.onMessage({ re: (sent[0] as { id: number }).id, ok: true, n: 3 }, []);
  assert.equal((await first).header["n"], 3);
  await assert.rejects(second, /nothing to undo/);
  let pushed = "";
  link.onPush = (header) => (pushed = String(header["type"]));
  transport.onMessage({ type: "counts" }, []);
  assert.equal(pushed, "counts");
  transport.onState("lost", "gone");
  await assert.rejects(third, ConnectionLost);
});

test("class colours differ, and sixty classes get sixty colours", () => {
  const colors: string[] = [];
  for (let k = 0; k < 60; k++) colors.push(nextColor(colors));
  assert.equal(new Set(colors).size, 60);
  assert.deepEqual(colors.slice(0, 7), CLASS_COLORS.slice(0, 7));
  for (const color of colors) assert.ok(contrast(parseColor(textOn(color)), parseColor(color)) >= 4.5, color);
});

test("the texts of both themes can be read", () => {
  const sheets = [...readFileSync("src/style.css", "utf8").matchAll(/^\.cytonym-label(?:\[data-theme="dark"\])? \{([^}]*--paper[^}]*)\}/gm)];
  assert.equal(sheets.length, 2);
  const pairs = [["ink", "paper"], ["ink", "ground"], ["ink", "soft"], ["ink", "press"], ["quiet", "paper"], ["quiet", "ground"], ["accent", "paper"], ["on-accent", "accent"],
    ["danger", "danger-soft"], ["ink", "danger-soft"], ["good", "good-soft"], ["warn", "warn-soft"]] as const;
  for (const [, rules] of sheets) {
    const colors = new Map([...(rules as string).matchAll(/--([\w-]+): (#[0-9a-f]{6})/g)].map(([, name, color]) => [name, color]));
    for (const [ink, paper] of pairs) {
      const [one, other] = [colors.get(ink), colors.get(paper)];
      assert.ok(one && other && contrast(parseColor(one), parseColor(other)) >= 4.5, `${ink} ${one} on ${paper} ${other}`);
    }
  }
});

test("codes become places in the class table, also of ids with gaps", () => {
  const out = new Uint8Array(6);
  codeIndices(Int16Array.of(-1, -2, -3, 7, 2, 5), [7, 2], out);
  assert.deepEqual([...out], [0, 1, 2, 3, 4, 0]);
  const table = classTable(["#ff0000", "#00ff00"], THEMES.dark);
  assert.deepEqual([...table.subarray(12, 15)], [255, 0, 0]);
  assert.deepEqual([...scaleTable(THEMES.dark).subarray(4 * 255, 4 * 255 + 3)], THEMES.dark.none);
});

test("keys: classes, commands, and nothing in common", () => {
  assert.deepEqual(key("1"), { classIndex: 0 });
  assert.deepEqual(key("9"), { classIndex: 8 });
  assert.deepEqual(key("b"), { classIndex: 9 });
  assert.deepEqual(key("u"), { action: "unsure" });
  assert.deepEqual(key("o"), { action: "offer" });
  assert.deepEqual(key("Backspace"), { action: "clear" });
  assert.deepEqual(key("Z", { shiftKey: true }), { action: "redo" });
  assert.deepEqual(key("Z"), { action: "undo" }); // caps lock
  assert.deepEqual(key("z", { ctrlKey: true }), { action: "undo" });
  assert.deepEqual(key("z", { metaKey: true, shiftKey: true }), { action: "redo" });
  assert.deepEqual(key("?", { shiftKey: true }), { action: "help" });
  assert.equal(key("a", { ctrlKey: true }), null);
  assert.equal(key("r", { ctrlKey: true }), null); // reload stays the browser's
  assert.equal(key("F5"), null);
  assert.equal(new Set(CLASS_KEYS).size, CLASS_KEYS.length);
  for (const k of CLASS_KEYS) assert.ok("classIndex" in (key(k) as object), k);
});

test("only moves go on while their key is held", () => {
  for (const name of ["ArrowLeft", "ArrowDown", "PageUp", "+"]) assert.ok(goesOn(key(name) as Command), name);
  for (const name of ["1", "b", "u", "x", "0", "z", "Enter", " ", "o", "n"]) assert.ok(!goesOn(key(name) as Command), name);
});

test("measured values in few characters", () => {
  assert.deepEqual([99.7, 99.4, 123.4, 0.1234, -99.9, 0, 5].map(short), ["100", "99", "123", "0.12", "-100", "0", "5"]);
});

test("the box of tissue that is asked for lies in the image", () => {
  assert.deepEqual(within(50, 20, 100), [40, 20]);
  assert.deepEqual(within(2, 20, 100), [0, 12]);
  assert.deepEqual(within(100, 20, 100), [90, 10]);
  assert.deepEqual(within(50, 1000, 100), [0, 100]);
  assert.ok(within(200, 20, 100)[1] < 1);
});

test("no shortcut while typing", () => {
  assert.ok(takesKeys("INPUT", "text", false, "1"));
  assert.ok(takesKeys("TEXTAREA", "", false, "z"));
  assert.ok(takesKeys("DIV", "", true, "x"));
  assert.ok(takesKeys("BUTTON", "button", false, "Enter"));
  assert.ok(!takesKeys("BUTTON", "button", false, "1"));
  assert.ok(takesKeys("INPUT", "range", false, "ArrowLeft"));
  assert.ok(!takesKeys("INPUT", "range", false, "u"));
});

test("pictures fill the lines of a texture", () => {
  assert.deepEqual(textureShape(10, 8192), [4096, 1]);
  assert.deepEqual(textureShape(4097, 8192), [4096, 2]);
  assert.deepEqual(textureShape(4096 * 8192 + 1, 8192), [8192, 4097]); // longer lines where there would be too many
  assert.deepEqual(textureShape(5000, 2048), [2048, 3]);
  assert.equal(textureShape(2048 * 2048 + 1, 2048), null);
});

test("density: counts become opacity, colours are averaged, the first row of the image is the top", () => {
  const points = Uint16Array.of(10, 10, 10, 10, 90, 90);
  const table = new Uint8Array(1024);
  table.set([200, 0, 0, 255, 0, 100, 0, 255]);
  const view = { x: 50, y: 50, ux: 1, uy: 1 };
  const up = densityImage(points, Uint8Array.of(0, 1, 0), table, undefined, view, 100, 100, 2, 2, true);
  assert.equal(up.inView, 3);
  assert.deepEqual([...up.pixels.subarray(8, 12)], [100, 50, 0, 255]); // low y is the bottom
  const down = densityImage(points, Uint8Array.of(0, 1, 0), table, undefined, view, 100, 100, 2, 2, false);
  assert.deepEqual([...down.pixels.subarray(0, 4)], [100, 50, 0, 255]);
  assert.equal(densityImage(points, Uint8Array.of(0, 1, 0), table, Uint8Array.of(1, 1, 0), view, 100, 100, 2, 2, true).inView, 1);
});

test("what was taken out of a page, before and behind the last kept cell", () => {
  const rows = Uint32Array.of(9, 4, 7, 1);
  const out = (kept: (row: number) => boolean): number[][] => Object.values(takenOut(rows, kept)).map((some) => [...some]);
  assert.deepEqual(out((row) => row === 4), [[9], [7, 1]]);
  assert.deepEqual(out(() => false), [[], [9, 4, 7, 1]]);
  assert.deepEqual(out(() => true), [[], []]);
});

test("the contrast of scaled pixels comes with the values that they stand for", () => {
  const looks = [{ low: 0, high: 0, max: 0, range: null }, { low: 5, high: 9, max: 20, range: null }];
  let told = 0;
  const state = { looks, hello: { rgb: false }, emit: () => told++ } as never;
  const ranges: [number, number][] = [[-1, 1], [0, 0.5]];
  takeLimits(state, [0, 1], [[100, 900], [0, 1]], true, ranges);
  takeLimits(state, [0, 1], [[100, 900], [0, 1]], true, structuredClone(ranges));
  assert.deepEqual(looks, [{ low: 100, high: 900, max: 1800, range: [-1, 1] }, { low: 5, high: 9, max: 20, range: [0, 0.5] }]);
  assert.equal(told, 1);
});

test("sorting keeps the order of equals, and puts cells without a value last", () => {
  const rows = Uint32Array.of(4, 3, 2, 1, 0);
  assert.deepEqual([...sortedBy(rows, Uint8Array.of(5, 255, 0, 5, 254), 1)], [2, 3, 0, 4, 1]);
  assert.deepEqual([...sortedBy(rows, Uint8Array.of(5, 255, 0, 5, 254), -1)], [4, 3, 0, 2, 1]);
  assert.deepEqual([...sortedBy(rows, Int16Array.of(-3, 32767, -1, 0, -2), 1)], [0, 4, 2, 3, 1]);
});
