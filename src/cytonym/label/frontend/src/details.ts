// Beside the tissue: what is known of the current cell, and the channels.

import { h, fill, iconButton, short } from "./dom.ts";
import { UNLABELLED, type CellDetails } from "./protocol.ts";
import { MOST_CHANNELS } from "./compositor.ts";
import type { Look, State } from "./state.ts";

const when = (text: unknown): string => {
  const date = new Date(String(text ?? ""));
  return Number.isNaN(date.getTime()) ? String(text ?? "") : date.toLocaleString(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
};

export class SidePane {
  readonly element: HTMLElement;
  private none = h("p", { class: "quiet" }, "No cell chosen. Arrows move through the gallery; a click in the map or the tissue chooses one cell.");
  private facts = h("div", {});
  private note = h("textarea", { rows: "2", maxlength: "10000", "aria-label": "Note on this cell", placeholder: "Note on this cell" }); // made once: news must not take it away from who types in it
  private rest = h("div", {});
  private cell = h("div", { class: "scroll", role: "tabpanel", "aria-label": "Cell" }, this.none, this.facts, this.note, this.rest);
  private noteRow = -1;
  private noted = ""; // as it is stored
  private channels = h("div", { class: "scroll", role: "tabpanel", "aria-label": "Channels" });
  private tabs: HTMLButtonElement[];
  private find = "";
  private rows = new Map<number, () => void>();

  constructor(private state: State) {
    const tab = (name: string, k: number): HTMLButtonElement => h("button", { type: "button", class: "tab", role: "tab", onclick: () => this.open(k) }, name);
    this.tabs = [tab("Cell", 0), tab("Channels", 1)];
    this.element = h("section", { class: "pane side", "aria-label": "Details" }, h("div", { class: "bar" }, h("div", { class: "tabs", role: "tablist" }, ...this.tabs)), this.cell, this.channels);
    this.note.addEventListener("change", () => this.keepNote());
    this.open(0);
    this.show(null);
    state.on(["hello", "channels"], () => this.listChannels());
    let timer = 0;
    state.on(["looks"], () => {
      this.rows.forEach((update) => update());
      window.clearTimeout(timer);
      timer = window.setTimeout(() => state.keepLooks(), 500);
    });
  }

  open(k: number): void {
    [this.cell, this.channels].forEach((panel, i) => (panel.hidden = i !== k));
    this.tabs.forEach((tab, i) => tab.setAttribute("aria-selected", String(i === k)));
  }

  show(cell: CellDetails | null): void {
    this.none.hidden = cell !== null;
    for (const part of [this.facts, this.note, this.rest]) part.hidden = cell === null;
    this.showNote(cell);
    if (!cell) return;
    const { state } = this;
    const swatch = (code: number): HTMLElement | null => {
      const color = state.classOf(code)?.color;
      return color ? h("span", { class: "swatch", style: { background: color } }) : null;
    };
    const bars = (pairs: [string, number | null, string | null][], most: number): HTMLElement => h("div", { class: "bars" }, ...pairs.flatMap(([name, value, color]) => [
      h("span", { class: "ellipsis", title: name }, name),
      h("span", { class: "track" }, h("span", { class: "fill", style: { width: `${value === null || most <= 0 ? 0 : Math.max(0, Math.min(100, (100 * value) / most))}%`, ...(color ? { background: color } : {}) } })),
      h("span", { class: "number" }, value === null ? "–" : short(value)),
    ]));
    const probabilities = [...(cell.probabilities ?? [])].sort((a, b) => b[1] - a[1]).slice(0, 5);
    const markers = cell.markers ?? [];
    const most = Math.max(...markers.map((m) => Math.abs(m[1] ?? 0)), 0);
    fill(this.facts,
      h("div", { class: "headline" }, h("strong", { class: "ellipsis", title: cell.name }, cell.name), h("span", { class: "quiet ellipsis" }, `${cell.region} · ${cell.instance}`)),
      h("div", { class: "facts" },
        h("span", { class: "quiet" }, "Label"), h("span", {}, swatch(cell.label), state.nameOf(cell.label), cell.by && cell.label !== UNLABELLED ? h("span", { class: "quiet" }, ` by ${cell.by}, ${when(cell.time)}`) : null),
        h("span", { class: "quiet" }, "Suggestion"), h("span", {}, cell.prediction >= 0 ? swatch(cell.prediction) : null, cell.prediction >= 0 ? state.nameOf(cell.prediction) : "none yet")),
      probabilities.length ? bars(probabilities.map(([id, p]) => [state.nameOf(id), p, state.classOf(id)?.color ?? null]), 1) : null);
    fill(this.rest,
      markers.length ? h("h3", {}, "Markers") : null, markers.length ? bars([...markers].sort((a, b) => (b[1] ?? -Infinity) - (a[1] ?? -Infinity)).map(([name, v]) => [name, v, null]), most) : null,
      cell.history?.length ? h("h3", {}, "History") : null,
      cell.history?.length ? h("ul", { class: "history" }, ...[...cell.history].reverse().map((entry) => h("li", { class: entry["undone"] ? "undone" : "" }, h("span", { class: "quiet" }, `${when(entry["time"])} `), `${String(entry["by"] ?? "")}: `, typeof entry["label"] === "number" ? state.nameOf(entry["label"]) : String(entry["label"] ?? entry["text"] ?? entry["kind"] ?? ""), entry["source"] ? h("span", { class: "quiet" }, ` (${String(entry["source"])})`) : null))) : null,
    );
  }

  /** The stored note of a cell, unless another text is being typed for it. */
  private showNote(cell: CellDetails | null): void {
    const row = cell?.row ?? -1;
    const typing = this.note.value !== this.noted;
    if (row === this.noteRow && typing) return;
    this.keepNote();
    this.noteRow = row;
    this.note.value = this.noted = cell?.note ?? "";
  }

  private keepNote(): void {
    const { state, noteRow: row } = this;
    const text = this.note.value;
    if (row < 0 || text === this.noted) return;
    const before = this.noted;
    this.noted = text;
    void state.command("note", "The note was not stored", { row, text }).then((answer) => {
      if (answer) return state.notify("done", "Note stored.");
      if (row === this.noteRow) this.noted = before;
      if (state.connection !== "open") state.notify("error", `There is no connection: the note “${text.slice(0, 60)}” was not stored.`);
    });
  }

  // ---- channels

  private listChannels(): void {
    const { state } = this;
    this.rows.clear();
    if (!state.hello.has_image || !state.looks.length) {
      fill(this.channels, h("p", { class: "quiet" }, "This store has no image."));
      return;
    }
    const list = h("div", { class: "channels" });
    const refill = (): void => {
      const wanted = this.find.trim().toLowerCase();
      const looks = state.looks.filter((look) => look.on || !wanted || look.name.toLowerCase().includes(wanted));
      looks.sort((a, b) => Number(b.on) - Number(a.on) || a.index - b.index);
      this.rows.clear();
      fill(list, ...looks.map((look) => this.channelRow(look)));
    };
    const input = h("input", { type: "search", placeholder: `Find among ${state.looks.length} channels`, "aria-label": "Find a channel", value: this.find });
    input.addEventListener("input", () => {
      this.find = input.value;
      refill();
    });
    refill();
    fill(this.channels, state.looks.length > 8 ? input : null, list);
  }

  private channelRow(look: Look): HTMLElement {
    const { state } = this;
    const on = h("input", { type: "checkbox", "aria-label": `Show ${look.name}` });
    on.checked = look.on;
    on.addEventListener("change", () => {
      if (on.checked && state.looks.filter((l) => l.on).length >= MOST_CHANNELS) {
        on.checked = false;
        state.notify("info", `At most ${MOST_CHANNELS} channels are mixed at once: switch one off first.`);
        return;
      }
      look.on = on.checked;
      state.emit("channels", "looks");
    });
    const color = h("input", { type: "color", "aria-label": `Colour of ${look.name}`, value: look.color });
    color.disabled = state.hello.rgb;
    color.addEventListener("input", () => {
      look.color = color.value;
      state.emit("looks");
    });
    const slider = (which: "low" | "high"): HTMLInputElement => {
      const element = h("input", { type: "range", min: "0", "aria-label": `${which === "low" ? "Darkest" : "Brightest"} value of ${look.name}` });
      element.addEventListener("input", () => {
        const value = Number(element.value);
        if (which === "low") look.low = Math.min(value, look.high - 1);
        else look.high = Math.max(value, look.low + 1);
        state.emit("looks");
      });
      return element;
    };
    const [low, high] = [slider("low"), slider("high")];
    const range = h("span", { class: "number" });
    const update = (): void => {
      for (const element of [low, high]) {
        element.max = String(look.max || 1);
        element.disabled = !look.on || !look.max;
      }
      low.value = String(look.low);
      high.value = String(look.high);
      const told = (value: number): string => (look.range ? short(look.range[0] + (value / 65535) * (look.range[1] - look.range[0])) : String(Math.round(value)));
      range.textContent = look.max ? `${told(look.low)} – ${told(look.high)}` : "";
    };
    update();
    this.rows.set(look.index, update);
    const reset = iconButton("reset", `Contrast of ${look.name} as at first`, () => {
      look.max = 0;
      state.emit("channels");
    });
    return h("div", { class: `channel ${look.on ? "on" : ""}` }, on, color, h("span", { class: "ellipsis name", title: look.name }, look.name), range, look.on ? reset : null, look.on ? h("div", { class: "sliders" }, low, high) : null);
  }
}
