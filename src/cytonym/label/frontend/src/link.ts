// Requests and answers over any transport, and the two transports: a notebook's model and a WebSocket.

import { decodeFrame, encodeFrame, ownBuffer, type Header, type Reply } from "./protocol.ts";

export type ConnectionState = "open" | "lost" | "closed";

export interface Transport {
  send(header: Header, buffers: ArrayBufferView[]): void;
  onMessage: (header: Header, buffers: ArrayBuffer[]) => void;
  onState: (state: ConnectionState, why: string) => void;
  open(): void;
  close(): void;
  retry(): void;
}

/** The connection went while the answer was outstanding: whether the request was carried out is not known. */
export class ConnectionLost extends Error {
  constructor(message: string, readonly request = -1) {
    super(message);
  }
}

interface Waiting {
  resolve: (reply: Reply) => void;
  reject: (error: Error) => void;
}

export class Link {
  onPush: (header: Header, buffers: ArrayBuffer[]) => void = () => {};
  onState: (state: ConnectionState, why: string) => void = () => {};
  onLate: (request: number, reply: Reply) => void = () => {}; // an answer after the connection was given up
  state: ConnectionState = "lost";
  private waiting = new Map<number, Waiting>();
  private next = Math.floor(Math.random() * 2 ** 40); // two views of one notebook model hear each other's answers

  constructor(private transport: Transport) {
    transport.onMessage = (header, buffers) => this.receive(header, buffers);
    transport.onState = (state, why) => {
      this.state = state;
      if (state !== "open") this.drop(why);
      this.onState(state, why);
    };
  }

  open(): void {
    this.transport.open();
  }

  close(): void {
    this.transport.close();
  }

  retry(): void {
    this.transport.retry();
  }

  request(type: string, fields: Header = {}, buffers: ArrayBufferView[] = []): Promise<Reply> {
    if (this.state !== "open") return Promise.reject(new ConnectionLost("There is no connection to the server."));
    const id = this.next++;
    return new Promise<Reply>((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      try {
        this.transport.send({ id, type, ...fields }, buffers);
      } catch (error) {
        this.waiting.delete(id);
        reject(new ConnectionLost(String(error), id));
      }
    });
  }

  private receive(header: Header, buffers: ArrayBuffer[]): void {
    const id = header["re"];
    if (typeof id !== "number") {
      this.onPush(header, buffers);
      return;
    }
    const waiting = this.waiting.get(id);
    this.waiting.delete(id);
    if (!waiting) this.onLate(id, { header, buffers });
    else if (header["ok"] === false) waiting.reject(new Error(String(header["error"] ?? "The server gave no reason.")));
    else waiting.resolve({ header, buffers });
  }

  private drop(why: string): void {
    const waiting = [...this.waiting];
    this.waiting.clear();
    for (const [id, { reject }] of waiting) reject(new ConnectionLost(why, id));
  }
}

const PROBE = -1; // an answer that nobody waits for
const PATIENCE_MS = 5000; // for an answer, then for one to a small question

/** The part of a notebook's widget model that is used. */
export interface WidgetModel {
  comm_live?: boolean;
  send(content: unknown, callbacks?: unknown, buffers?: unknown[]): void;
  on(name: string, callback: (...args: never[]) => void): void;
  off(name: string, callback?: ((...args: never[]) => void) | null): void;
}

export class ModelTransport implements Transport {
  onMessage: Transport["onMessage"] = () => {};
  onState: Transport["onState"] = () => {};
  private asked = new Set<unknown>(); // not answered yet
  private timer = 0;
  private lost = false;
  private listener = (content: Header, buffers: (ArrayBuffer | ArrayBufferView)[] = []): void => {
    this.asked.delete(content["re"]);
    this.wait(this.asked.size ? () => this.probe() : null);
    if (this.lost) this.open(false);
    this.onMessage(content, buffers.map(ownBuffer));
  };
  private live = (): void => {
    if (this.model.comm_live === false) this.lose();
    else this.probe(); // anywidget does not tell which way it changed
  };

  constructor(private model: WidgetModel) {}

  open(listen = true): void {
    if (listen) {
      this.model.on("msg:custom", this.listener as never);
      this.model.on("comm_live_update", this.live as never);
    }
    this.lost = false;
    this.onState("open", "");
  }

  send(header: Header, buffers: ArrayBufferView[]): void {
    this.model.send(header, undefined, buffers.map((b) => new DataView(b.buffer, b.byteOffset, b.byteLength)));
    this.asked.add(header["id"]);
    if (!this.timer) this.wait(() => this.probe());
  }

  close(): void {
    this.wait(null);
    this.model.off("msg:custom", this.listener as never);
    this.model.off("comm_live_update", this.live as never);
  }

  retry(): void {
    this.probe();
  }

  /** A large answer may take its time, but not one to a small question: a kernel that gives none is busy or gone. */
  private probe(): void {
    try {
      this.model.send({ id: PROBE, type: "cell", row: 0 });
    } catch {
      return this.lose();
    }
    this.wait(() => this.lose());
  }

  private lose(): void {
    this.asked.clear();
    this.wait(() => this.probe());
    if (this.lost) return;
    this.lost = true;
    this.onState("lost", "The notebook's kernel does not answer: it is busy, or it was restarted. In that case run the cell again.");
  }

  private wait(then: (() => void) | null): void {
    window.clearTimeout(this.timer);
    this.timer = then ? window.setTimeout(() => {
      this.timer = 0;
      then();
    }, PATIENCE_MS) : 0;
  }
}

const WRONG_TOKEN = 4403;
const WAITS = [0.5, 1, 2, 4, 8]; // seconds between tries

export class SocketTransport implements Transport {
  onMessage: Transport["onMessage"] = () => {};
  onState: Transport["onState"] = () => {};
  private socket: WebSocket | null = null;
  private tries = 0;
  private opened = false;
  private timer = 0;
  private ended = false;

  constructor(private url: string, private protocols: string[] = []) {}

  open(): void {
    if (this.ended) return;
    window.clearTimeout(this.timer);
    const socket = new WebSocket(this.url, this.protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      this.tries = 0;
      this.opened = true;
      this.onState("open", "");
    };
    socket.onmessage = (event: MessageEvent) => {
      if (!(event.data instanceof ArrayBuffer)) return;
      const { header, buffers } = decodeFrame(event.data);
      this.onMessage(header, buffers);
    };
    socket.onclose = (event: CloseEvent) => {
      if (this.socket !== socket || this.ended) return;
      this.socket = null;
      if (event.code === WRONG_TOKEN) {
        this.ended = true;
        this.onState("closed", "The server refused this page: open the address that it printed, with its token.");
        return;
      }
      const never = !this.opened && this.tries > 0;
      const wait = WAITS[Math.min(this.tries++, WAITS.length - 1)] as number;
      this.onState("lost", 
        never ? "No connection: is the server running, and is this the whole address that it printed?" : event.reason || "The connection to the server was lost.");
      this.timer = window.setTimeout(() => this.open(), wait * 1000);
    };
  }

  send(header: Header, buffers: ArrayBufferView[]): void {
    if (this.socket?.readyState !== WebSocket.OPEN) throw new Error("The connection is not open.");
    this.socket.send(encodeFrame(header, buffers));
  }

  close(): void {
    this.ended = true;
    window.clearTimeout(this.timer);
    this.socket?.close();
  }

  retry(): void {
    if (this.socket?.readyState === WebSocket.OPEN || this.ended) return;
    if (this.socket) {
      const old = this.socket;
      this.socket = null;
      old.close();
    }
    this.open();
  }
}
