// A notebook's kernel that answers, is busy, or is gone; a server that ends the connection.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { ConnectionLost, Link, ModelTransport, SocketTransport, type WidgetModel } from "../src/link.ts";
import type { Header } from "../src/protocol.ts";

Object.assign(globalThis, { window: globalThis });

class Kernel implements WidgetModel {
  comm_live?: boolean;
  sent: Header[] = [];
  private listeners = new Map<string, (...args: unknown[]) => void>();
  send = (content: unknown): void => void this.sent.push(content as Header);
  on = (name: string, callback: (...args: never[]) => void): void => void this.listeners.set(name, callback as never);
  off = (name: string): void => void this.listeners.delete(name);
  tell = (header: Header): void => this.listeners.get("msg:custom")?.(header, []);
  live = (): void => this.listeners.get("comm_live_update")?.();
  answer = (k: number): void => this.tell({ re: (this.sent[k] as Header)["id"], ok: true });
  get listening(): number {
    return this.listeners.size;
  }
}

function opened(): { kernel: Kernel; link: Link; states: string[] } {
  const kernel = new Kernel();
  const link = new Link(new ModelTransport(kernel));
  const states: string[] = [];
  link.onState = (state) => states.push(state);
  link.open();
  return { kernel, link, states };
}

test("a kernel that gives no answer for ten seconds is lost, and found again by its first word", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { kernel, link, states } = opened();
  const label = link.request("assign");
  mock.timers.tick(5000);
  assert.equal(kernel.sent.length, 2, "a small question");
  assert.deepEqual(states, ["open"]);
  mock.timers.tick(5000);
  assert.deepEqual(states, ["open", "lost"]);
  const lost = await label.then(() => null, (error: unknown) => error as ConnectionLost);
  assert.ok(lost instanceof ConnectionLost);
  await assert.rejects(link.request("undo"), ConnectionLost);
  let late = -5;
  link.onLate = (request, { header }) => (late = header["ok"] ? request : -5);
  kernel.answer(0);
  assert.deepEqual(states, ["open", "lost", "open"]);
  assert.equal(late, lost.request, "the label was stored after all");
  link.close();
  assert.equal(kernel.listening, 0);
  mock.timers.reset();
});

test("a slow answer is waited for as long as small questions are answered", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { kernel, link, states } = opened();
  void link.request("gallery").catch(() => {});
  for (let k = 0; k < 20; k++) {
    mock.timers.tick(5000);
    kernel.answer(kernel.sent.length - 1);
  }
  assert.deepEqual(states, ["open"]);
  kernel.answer(0);
  const asked = kernel.sent.length;
  mock.timers.tick(60_000);
  assert.equal(kernel.sent.length, asked, "nothing is asked where nothing is awaited");
  link.close();
  mock.timers.reset();
});

test("a kernel that was restarted is lost at once", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { kernel, link, states } = opened();
  kernel.comm_live = false;
  kernel.live();
  assert.deepEqual(states, ["open", "lost"]);
  link.close();
  const other = opened(); // the host does not tell which way it changed
  other.kernel.live();
  assert.deepEqual(other.states, ["open"]);
  mock.timers.tick(5000);
  assert.deepEqual(other.states, ["open", "lost"]);
  other.link.close();
  mock.timers.reset();
});

test("a server may end the connection for any reason but a wrong token, and the page comes back", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const made: { onclose?: (event: unknown) => void }[] = [];
  class Socket {
    onclose?: (event: unknown) => void;
    constructor() {
      made.push(this);
    }
  }
  Object.assign(globalThis, { WebSocket: Socket });
  const states: string[] = [];
  const transport = new SocketTransport("ws://localhost/ws");
  transport.onState = (state) => states.push(state);
  transport.open();
  made[0]?.onclose?.({ code: 1008, reason: "The page does not read what it asked for." });
  mock.timers.tick(500);
  assert.deepEqual([states, made.length], [["lost"], 2]);
  made[1]?.onclose?.({ code: 4403, reason: "" });
  mock.timers.tick(60_000);
  assert.deepEqual([states, made.length], [["lost", "closed"], 2]);
  mock.timers.reset();
});
