// Parts that need no browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Bitset } from "../src/bitset.ts";
import { CLASS_COLORS, classTable, codeIndices, contrast, nextColor, parseColor, scaleTable, textOn, THEMES } from "../src/colors.ts";
import { atlasGrid, halfTable, toAtlas } from "../src/compositor.ts";
import { sortedBy } from "../src/gallery.ts";
import { CLASS_KEYS, commandFor, takesKeys } from "../src/keys.ts";
import { insidePolygon, lassoRows, nearestPoint, type Polygon } from "../src/lasso.ts";
import { ConnectionLost, Link, type Transport } from "../src/link.ts";
import { leftBehind } from "../src/offer.ts";
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
  const pairs = [["#16191d", "#ffffff"], ["#565d66", "#ffffff"], ["#565d66", "#eef0f3"], ["#0b5cad", "#ffffff"], ["#a4262c", "#fdecec"], ["#0c6b3f", "#e6f5ec"], ["#6b4a00", "#fff4d6"],
    ["#eceff3", "#15191f"], ["#a3acb8", "#15191f"], ["#7cb8ff", "#15191f"], ["#ff9c9c", "#3a1719"], ["#7ddba5", "#10301f"], ["#ffd979", "#35290a"]];
  for (const [ink, paper] of pairs) assert.ok(contrast(parseColor(ink as string), parseColor(paper as string)) >= 4.5, `${ink} on ${paper}`);
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

test("no shortcut while typing", () => {
  assert.ok(takesKeys("INPUT", "text", false, "1"));
  assert.ok(takesKeys("TEXTAREA", "", false, "z"));
  assert.ok(takesKeys("DIV", "", true, "x"));
  assert.ok(takesKeys("BUTTON", "button", false, "Enter"));
  assert.ok(!takesKeys("BUTTON", "button", false, "1"));
  assert.ok(takesKeys("INPUT", "range", false, "ArrowLeft"));
  assert.ok(!takesKeys("INPUT", "range", false, "u"));
});

test("pictures lie side by side in the layers of their channels", () => {
  const [columns, rows] = atlasGrid(3, 2, 2);
  assert.ok(columns * rows >= 3);
  const data = Uint8Array.from({ length: 3 * 2 * 4 }, (_, i) => i); // three pictures, two channels, 2 x 2
  const out = toAtlas(data, 3, 2, 2, 2, 2, 2);
  assert.deepEqual([...out.subarray(0, 8)], [0, 1, 8, 9, 2, 3, 10, 11]); // first channel of the first and the second picture
  assert.deepEqual([...out.subarray(16, 18)], [4, 5]); // second channel of the first
});

test("sixteen-bit floats are near the values they stand for", () => {
  const table = halfTable();
  const value = (bits: number): number => ((bits >> 10) & 31 ? 2 ** (((bits >> 10) & 31) - 15) * (1 + (bits & 1023) / 1024) : (bits & 1023) * 2 ** -24);
  assert.equal(table[0], 0);
  assert.equal(value(table[65535] as number), 1);
  let last = -1;
  for (let k = 0; k < 65536; k++) {
    const v = value(table[k] as number);
    assert.ok(Math.abs(v - k / 65535) <= Math.max(2 ** -24, (k / 65535) * 2 ** -11) * 1.01, String(k));
    assert.ok(v >= last);
    last = v;
  }
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

test("cells behind the last kept one of a page were taken out, too", () => {
  const rows = Uint32Array.of(9, 4, 7, 1);
  assert.deepEqual([...leftBehind(rows, (row) => row === 4)], [7, 1]);
  assert.deepEqual([...leftBehind(rows, () => false)], [9, 4, 7, 1]);
  assert.deepEqual([...leftBehind(rows, () => true)], []);
});

test("sorting keeps the order of equals, and puts cells without a value last", () => {
  const rows = Uint32Array.of(4, 3, 2, 1, 0);
  assert.deepEqual([...sortedBy(rows, Uint8Array.of(5, 255, 0, 5, 254), 1)], [2, 3, 0, 4, 1]);
  assert.deepEqual([...sortedBy(rows, Uint8Array.of(5, 255, 0, 5, 254), -1)], [4, 3, 0, 2, 1]);
  assert.deepEqual([...sortedBy(rows, Int16Array.of(-3, 32767, -1, 0, -2), 1)], [0, 4, 2, 3, 1]);
});
