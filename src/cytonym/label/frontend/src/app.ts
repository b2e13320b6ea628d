// The whole desk: header, three columns, keyboard, notices.

import { ClassBar } from "./classbar.ts";
import { ContextPane } from "./context.ts";
import { SidePane } from "./details.ts";
import { button, count, h, fill } from "./dom.ts";
import { Gallery } from "./gallery.ts";
import { commandFor, goesOn, HELP, takesKeys, type Action } from "./keys.ts";
import { LearnPane } from "./learn.ts";
import { Link, type Transport } from "./link.ts";
import { MapPane } from "./map.ts";
import { NOT_A_CELL, UNLABELLED, UNSURE } from "./protocol.ts";
import { NoticeList } from "./notices.ts";
import { State } from "./state.ts";

type ThemeName = "auto" | "light" | "dark";
const THEME_KEY = "cytonym-label-theme";
const THEME_SIGNS: { [name in ThemeName]: string } = { auto: "◐", light: "☀", dark: "☾" };

function stored(key: string): string | null {
  try {
    return window.localStorage.getItem(key);
  } catch {
    return null; // a notebook may forbid it
  }
}

export interface Desk {
  state: State;
  map: MapPane;
  close(): void;
}

export function mount(host: HTMLElement, transport: Transport, page: boolean): Desk {
  const state = new State(new Link(transport));
  const root = h("div", { class: `cytonym-label ${page ? "page" : "widget"}`, tabindex: "-1", "data-lm-suppress-shortcuts": "true" });
  const map = new MapPane(state);
  const gallery = new Gallery(state);
  const context = new ContextPane(state);
  const side = new SidePane(state);
  const learn = new LearnPane(state);
  const back = (): void => {
    (root.querySelector(".scroller") as HTMLElement | null)?.focus({ preventScroll: true });
  };
  const classes = new ClassBar(state, back);
  context.onDetails = (details) => side.show(details);
  context.onMenu = () => classes.find();

  // ---- header
  const title = h("strong", { class: "ellipsis" }, "cytonym");
  const who = h("span", { class: "quiet ellipsis" });
  const link = h("span", { class: "connection", role: "status" });
  const undo = button("↶ Undo", "Undo (z)", () => void state.step("undo"));
  const redo = button("↷ Redo", "Redo (Shift-Z)", () => void state.step("redo"));
  const help = h("dialog", { class: "sheetbox help", "aria-label": "Keys" });
  const theme = button(THEME_SIGNS.auto, "Light, dark, or as the system", () => setTheme(({ auto: "light", light: "dark", dark: "auto" } as const)[chosen]));
  const exports = h("details", { class: "menu" }, h("summary", {}, "Export"), h("div", { class: "drop" },
    ...([["csv", "Labels as CSV"], ["geojson", "GeoJSON for QuPath"], ["masks", "Masks in class colours"], ["table", "Write into the table"]] as const).map(([what, name]) =>
      button(name, name, () => {
        exports.removeAttribute("open");
        void exportAs(what);
      }))));
  const header = h("header", { class: "bar top" }, title, who, h("span", { class: "grow" }), link, undo, redo, exports, theme, button("?", "Keys (?)", () => openHelp()));
  const said = h("span", {});
  const again = button("Try now", "Try now", () => state.link.retry());
  const banner = h("div", { class: "banner", role: "alert", hidden: true }, said, again);
  fill(root, header, banner, h("div", { class: "columns" },
    h("div", { class: "column left" }, map.element, learn.element), h("div", { class: "column middle" }, gallery.element, classes.element),
    h("div", { class: "column right" }, context.element, side.element)), new NoticeList(state).element, help);
  host.replaceChildren(root);

  async function exportAs(what: string): Promise<void> {
    try {
      const { header: told, buffers } = await state.link.request("export", { what });
      const name = String(told["name"] ?? what);
      if (buffers[0]?.byteLength) {
        const url = URL.createObjectURL(new Blob([buffers[0]]));
        const anchor = h("a", { href: url, download: name });
        root.append(anchor);
        anchor.click();
        anchor.remove();
        window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
      }
      state.notify("done", what === "table" ? "The labels are in the table." : `Written: ${name}${told["folder"] ? `, in ${String(told["folder"])}` : ""}.`, [], true);
    } catch (error) {
      state.fail("The export failed", error);
    }
  }

  function openHelp(): void {
    fill(help, h("h2", {}, "Keys"), h("div", { class: "keys" }, ...HELP.map(([name, keys]) => h("div", {}, h("h3", {}, name), ...keys.map(([key, what]) => h("div", { class: "key" }, h("kbd", {}, key), h("span", {}, what)))))),
      h("p", { class: "quiet" }, "Borders in the gallery: inside the label, outside the suggestion. Suggestions never count as labels until you accept them."),
      h("div", { class: "bar" }, h("span", { class: "grow" }), button("Close", "Close (Esc)", () => help.close())));
    help.showModal();
  }

  // ---- light and dark
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen: ThemeName = (stored(THEME_KEY) as ThemeName | null) ?? "auto";
  if (!(chosen in THEME_SIGNS)) chosen = "auto";
  function setTheme(name: ThemeName): void {
    chosen = name;
    try {
      window.localStorage.setItem(THEME_KEY, name);
    } catch {
      // a notebook may forbid it: the choice then lasts as long as the page
    }
    const dark = name === "dark" || (name === "auto" && system.matches);
    root.dataset["theme"] = dark ? "dark" : "light";
    theme.textContent = THEME_SIGNS[name];
    map.setTheme(dark);
    gallery.dark = dark;
    state.emit("theme");
  }
  const follow = (): void => setTheme(chosen);
  system.addEventListener("change", follow);

  // ---- what the header and the notices say
  state.on(["hello"], () => {
    title.textContent = state.hello.title || "cytonym";
    title.title = state.hello.title;
    if (page) document.title = `${state.hello.title || "cytonym"}: labels`;
    who.textContent = `${count(state.hello.n)} cells · ${state.hello.annotator}${state.hello.readonly ? " · read-only" : ""}`;
  });
  state.on(["counts", "hello"], () => {
    undo.disabled = !state.canUndo && !state.unsent.cells;
    redo.disabled = !state.canRedo;
  });
  const saving = (): void => {
    const lost = state.unsent.cells;
    const waiting = [...state.pending.values()].reduce((sum, p) => sum + p.rows.length, lost);
    link.dataset["state"] = state.connection !== "open" || lost ? "lost" : waiting ? "waiting" : "open";
    link.textContent = state.connection !== "open" ? "not connected" : lost ? `${count(waiting)} not stored` : waiting ? `storing ${count(waiting)}…` : "all stored";
    banner.hidden = state.connection === "open";
    if (banner.hidden) return;
    const labels = lost ? `${lost === 1 ? "1 label is" : `${count(lost)} labels are`} not confirmed` : "";
    if (state.connection === "closed") said.textContent = `${state.why}${labels ? ` ${labels}${state.hello?.store ? ": the page that is opened at this address offers to send them again" : ""}.` : ""}`;
    else said.textContent = `${page ? "No connection to the server: trying again." : state.why} ${labels ? `${labels}.` : "Nothing that was confirmed is lost."}`;
    again.hidden = state.connection === "closed";
  };
  state.on(["connection", "pending"], saving);

  /** Closes the menus that are open, but for one that holds an element; says whether there was one. */
  function closeMenus(but: Node | null = null): boolean {
    const open = [...root.querySelectorAll<HTMLDetailsElement>("details.menu[open]")].filter((menu) => !but || !menu.contains(but));
    for (const menu of open) {
      if (menu.contains(document.activeElement)) menu.querySelector("summary")?.focus();
      menu.open = false;
    }
    return open.length > 0;
  }

  // ---- keys
  const actions: { [action in Action]: () => void } = {
    unsure: () => state.assign(UNSURE), notCell: () => state.assign(NOT_A_CELL), clear: () => state.assign(UNLABELLED), undo: () => void state.step("undo"), redo: () => void state.step("redo"),
    all: () => gallery.all(), invert: () => gallery.invert(), accept: () => state.accept(), retrain: () => learn.train(), next: () => learn.next(), offer: () => void state.nextPage(), search: () => void state.search(),
    map: () => map.nextMap(), color: () => map.nextColoring(), filter: () => map.nextFilter(), palette: () => classes.find(), help: openHelp, view: () => map.chooseView(),
    escape: () => closeMenus() || state.drop(), left: () => gallery.move(-1, 0), right: () => gallery.move(1, 0), up: () => gallery.move(0, -1), down: () => gallery.move(0, 1),
    extendLeft: () => gallery.move(-1, 0, true), extendRight: () => gallery.move(1, 0, true), pageNext: () => gallery.nextPage(1), pageBack: () => gallery.nextPage(-1), toggle: () => gallery.toggle(),
    zoomIn: () => map.zoom(1 / 1.5), zoomOut: () => map.zoom(1.5), fit: () => map.fit(), panLeft: () => map.pan(60, 0), panRight: () => map.pan(-60, 0), panUp: () => map.pan(0, 60), panDown: () => map.pan(0, -60),
    outlines: () => gallery.toggleOutlines(),
  };
  const onKey = (event: KeyboardEvent): void => {
    const target = event.target as HTMLElement;
    if (!page) event.stopPropagation(); // the notebook has shortcuts of its own
    if (event.defaultPrevented || event.isComposing || !state.hello || root.querySelector("dialog[open]")) return;
    const tag = target.tagName ?? "";
    if (takesKeys(tag, (target as HTMLInputElement).type ?? "", target.isContentEditable, event.key)) return;
    const command = commandFor(event);
    if (!command) return;
    event.preventDefault();
    if (event.repeat && !goesOn(command)) return;
    state.keyAt = event.timeStamp;
    if ("classIndex" in command) {
      const chosenClass = state.classes[command.classIndex];
      if (chosenClass) state.assign(chosenClass.id);
      else state.notify("info", state.classes.length ? `There is no class with the key ${event.key}. Press l to find or add one.` : "There are no classes yet: press l and type a name.");
    } else actions[command.action]();
    state.keyAt = 0;
  };
  const listener = onKey as EventListener;
  (page ? window : root).addEventListener("keydown", listener);
  let pointed: EventTarget | null = null; // the menu that was opened with the pointer
  root.addEventListener("pointerdown", (event) => (pointed = event.target));
  root.addEventListener("change", (event) => {
    if (event.target === pointed && (event.target as HTMLElement).tagName === "SELECT" && !root.querySelector("dialog[open]")) back();
  });
  root.addEventListener("click", (event) => {
    const target = event.target as HTMLElement;
    if (event.detail > 0 && target.closest("button") && !root.querySelector("dialog[open]")) back(); // Enter is for suggestions, not for the button again
    closeMenus(target);
  });
  const ask = (event: BeforeUnloadEvent): void => {
    if (state.pending.size || state.unsent.cells) event.preventDefault();
  };
  if (page) window.addEventListener("beforeunload", ask);
  const heard = (event: StorageEvent): void => state.unsent.heard(event.key, event.newValue);
  window.addEventListener("storage", heard);

  setTheme(chosen);
  saving();
  state.emit("notices"); // of what cannot be drawn
  state.link.open();
  return {
    state, map,
    close: () => {
      (page ? window : root).removeEventListener("keydown", listener);
      window.removeEventListener("beforeunload", ask);
      window.removeEventListener("storage", heard);
      system.removeEventListener("change", follow);
      state.link.close();
      for (const pane of [map, gallery, context]) pane.close();
      root.remove();
    },
  };
}
