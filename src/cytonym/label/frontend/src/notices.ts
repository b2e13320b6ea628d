// What has happened and what went wrong, in the corner: each notice is made once, so that it is read out once and its buttons stay.

import { button, h } from "./dom.ts";
import type { Notice } from "./bus.ts";
import type { State } from "./state.ts";

interface Shown {
  notice: Notice;
  element: HTMLElement;
}

export class NoticeList {
  readonly element = h("div", { class: "notices", "aria-live": "polite" });
  private shown = new Map<string, Shown>();

  constructor(private state: State) {
    state.on(["notices"], () => this.show());
  }

  private show(): void {
    const { notices } = this.state;
    const keys = new Set(notices.map(({ key }) => key));
    for (const [key, { element }] of [...this.shown]) {
      if (keys.has(key)) continue;
      element.remove();
      this.shown.delete(key);
    }
    for (const notice of notices) {
      const old = this.shown.get(notice.key);
      if (old?.notice.kind === notice.kind && old.notice.actions.length === notice.actions.length) {
        if (old.notice.text !== notice.text) (old.element.firstElementChild as HTMLElement).textContent = notice.text;
        old.notice = notice;
      } else {
        old?.element.remove();
        const shown: Shown = { notice, element: h("div", {}) };
        shown.element = this.make(shown);
        this.shown.set(notice.key, shown);
        this.element.append(shown.element);
      }
    }
  }

  private make(shown: Shown): HTMLElement {
    const { kind, text, actions } = shown.notice;
    const close = (): void => this.state.dismiss(shown.notice);
    return h("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" }, h("span", {}, text),
      ...actions.map(([name], k) => button(name, name, () => {
        const run = shown.notice.actions[k]?.[1];
        close();
        run?.();
      })), actions.length ? null : button("×", "Dismiss", close, { class: "close" }));
  }
}
