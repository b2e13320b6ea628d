// Who wants to hear of what, notices, and requests whose failure is told.

import { ConnectionLost, type Link } from "./link.ts";
import type { Header, Reply } from "./protocol.ts";

export type Topic =
  | "hello" | "classes" | "labels" | "counts" | "set" | "picks" | "current" | "model" | "coloring" | "filter" | "points" | "job"
  | "connection" | "notices" | "channels" | "looks" | "theme" | "pending" | "summary" | "outlines" | "details";

export interface Notice {
  key: string; // a notice takes the place of the last one with the same key
  kind: "info" | "error" | "done";
  text: string;
  actions: [string, () => void][];
  lasting: boolean;
}

const MOST_NOTICES = 5;

export class Bus {
  notices: Notice[] = [];
  private listeners = new Map<Topic, Set<() => void>>();

  constructor(readonly link: Link) {}

  on(topics: Topic[], listener: () => void): void {
    for (const topic of topics) {
      if (!this.listeners.has(topic)) this.listeners.set(topic, new Set());
      this.listeners.get(topic)?.add(listener);
    }
  }

  emit(...topics: Topic[]): void {
    const run = new Set<() => void>();
    for (const topic of topics) for (const listener of this.listeners.get(topic) ?? []) run.add(listener);
    for (const listener of run) listener();
  }

  notify(kind: Notice["kind"], text: string, actions: Notice["actions"] = [], lasting = kind === "error" || actions.length > 0, key = text): Notice {
    const notice = { key, kind, text, actions, lasting };
    const others = this.notices.filter((old) => old.key !== key);
    const passing = others.filter((old) => !old.actions.length); // what asks for an answer stays
    const pushedOut = new Set(passing.slice(0, Math.max(0, passing.length + 1 - MOST_NOTICES)));
    this.notices = [...others.filter((old) => !pushedOut.has(old)), notice];
    if (!lasting) window.setTimeout(() => this.dismiss(notice), 5000);
    this.emit("notices");
    return notice;
  }

  dismiss(notice: Notice): void {
    this.notices = this.notices.filter((n) => n !== notice);
    this.emit("notices");
  }

  fail(what: string, error: unknown): void {
    if (error instanceof ConnectionLost) return; // the banner of the connection says it
    this.notify("error", `${what}: ${error instanceof Error ? error.message : String(error)}`);
  }

  protected async ask(what: string, type: string, fields: Header = {}, buffers: ArrayBufferView[] = []): Promise<Reply | null> {
    try {
      return await this.link.request(type, fields, buffers);
    } catch (error) {
      this.fail(what, error);
      return null;
    }
  }

  async command(type: string, what: string, fields: Header = {}): Promise<Header | null> {
    const reply = await this.ask(what, type, fields);
    return reply ? reply.header : null;
  }
}
