// The classes with their keys and counts, and the palette that finds any class by typing.

import { hexColor, parseColor, textOn } from "./colors.ts";
import { button, count, eachFrame, h, fill } from "./dom.ts";
import { CLASS_KEYS } from "./keys.ts";
import { NOT_A_CELL, UNLABELLED, UNSURE, type LabelClass } from "./protocol.ts";
import type { State } from "./state.ts";

const LONGEST_NAME = "100"; // as cytonym.label.naming has it

export class ClassBar {
  readonly element: HTMLElement;
  private chips = h("div", { class: "chips", role: "group", "aria-label": "Classes" });
  private editor = h("dialog", { class: "sheetbox", "aria-label": "Classes" });
  private palette = h("dialog", { class: "sheetbox palette", "aria-label": "Find a class" });

  constructor(private state: State, private back: () => void) {
    this.element = h("section", { class: "pane classes", "aria-label": "Classes" }, this.chips, this.editor, this.palette);
    state.on(["classes", "counts", "hello"], eachFrame(() => this.show()));
  }

  private show(): void {
    const { state } = this;
    const { counts } = state;
    const chip = (key: string, name: string, color: string | null, n: number, code: number): HTMLElement => h("button", {
      type: "button", class: "chip", title: `${name}: ${count(n)} ${n === 1 ? "cell" : "cells"}${key ? `, key ${key}` : ""}`, "aria-label": `Label as ${name}${key ? `, key ${key}` : ""}`,
      "data-code": String(code), onclick: () => {
        state.assign(code);
        this.back();
      },
    }, h("kbd", color ? { style: { background: color, color: textOn(color) } } : {}, key || "·"), h("span", { class: "ellipsis" }, name), h("span", { class: "number" }, count(n)));
    fill(this.chips,
      ...state.classes.map((c, k) => chip(CLASS_KEYS[k] ?? "", c.name, c.color, counts.by_class[String(c.id)] ?? 0, c.id)),
      chip("u", "unsure", null, counts.unsure, UNSURE), chip("x", "not a cell", null, counts.not_cell, NOT_A_CELL),
      h("button", { type: "button", class: "chip plain", onclick: () => this.edit(), title: "Add, rename, recolour or remove classes" }, state.classes.length ? "Edit classes…" : "Add the first class…"));
  }

  /** Type to find: Enter labels with the class shown first; a name that is not there can be added. */
  find(): void {
    const { state } = this;
    const listId = `cytonym-found-${Math.random().toString(36).slice(2)}`;
    const input = h("input", {
      type: "text", placeholder: "Type a class name", "aria-label": "Class name", autocomplete: "off", spellcheck: "false", maxlength: LONGEST_NAME,
      role: "combobox", "aria-expanded": "true", "aria-autocomplete": "list", "aria-controls": listId,
    });
    const list = h("div", { class: "found", id: listId, role: "listbox", "aria-label": "Classes found" });
    let at = 0;
    let options: { name: string; color: string | null; run: () => void }[] = [];
    const close = (): void => {
      this.palette.close();
      this.back();
    };
    const refill = (): void => {
      const typed = input.value.trim().normalize();
      const wanted = typed.toLowerCase();
      const classes = state.classes.filter((c) => c.name.toLowerCase().includes(wanted));
      classes.sort((a, b) => Number(b.name.toLowerCase().startsWith(wanted)) - Number(a.name.toLowerCase().startsWith(wanted)));
      const of = (code: number, name: string, color: string | null): (typeof options)[number] => ({ name, color, run: () => state.assign(code) });
      options = classes.map((c: LabelClass) => of(c.id, c.name, c.color));
      for (const [code, name] of [[UNSURE, "unsure"], [NOT_A_CELL, "not a cell"], [UNLABELLED, "clear the label"]] as const) {
        if (name.includes(wanted)) options.push(of(code, name, null));
      }
      if (typed && !state.classes.some((c) => c.name === typed)) {
        options.push({ name: `Add the class “${typed}” and label with it`, color: null, run: () => void state.addClass(typed).then((added) => added && state.assign(added.id)) });
      }
      at = Math.max(0, Math.min(at, options.length - 1));
      fill(list, ...options.map((option, k) => h("button", { type: "button", tabindex: "-1", role: "option", id: `${listId}-${k}`, "aria-selected": String(k === at), class: "option", onclick: () => {
        close();
        option.run();
      } }, h("span", { class: "swatch", style: option.color ? { background: option.color } : { visibility: "hidden" } }), h("span", { class: "ellipsis" }, option.name))));
      list.children[at]?.scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", options.length ? `${listId}-${at}` : "");
    };
    input.addEventListener("input", () => {
      at = 0;
      refill();
    });
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        at += event.key === "ArrowDown" ? 1 : -1;
        at = (at + options.length) % Math.max(1, options.length);
        refill();
        event.preventDefault();
      } else if (event.key === "Enter") {
        const option = options[at];
        close();
        option?.run();
        event.preventDefault();
      }
      event.stopPropagation();
    });
    fill(this.palette, input, list);
    refill();
    this.palette.showModal();
    input.focus();
  }

  private edit(): void {
    const { state } = this;
    const list = h("div", { class: "edits" });
    const refill = (): void => fill(list, ...state.classes.map((c) => this.editRow(c, refill)));
    const name = h("input", { type: "text", placeholder: "Name of a new class", "aria-label": "Name of a new class", maxlength: LONGEST_NAME });
    const add = (): void => {
      const typed = name.value.trim();
      if (!typed) return;
      void state.addClass(typed).then(() => {
        name.value = "";
        refill();
      });
    };
    name.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) add();
    });
    refill();
    fill(this.editor, h("h2", {}, "Classes"), list, h("div", { class: "bar" }, name, button("Add", "Add the class", add)),
      h("div", { class: "bar" }, h("span", { class: "grow" }), button("Close", "Close", () => {
        this.editor.close();
        this.back();
      })));
    this.editor.showModal();
    name.focus();
  }

  private editRow(c: LabelClass, refill: () => void): HTMLElement {
    const { state } = this;
    const n = state.counts.by_class[String(c.id)] ?? 0;
    const color = h("input", { type: "color", value: hexColor(parseColor(c.color)), "aria-label": `Colour of ${c.name}` });
    color.addEventListener("change", () => void state.changeClass({ op: "color", class: c.id, color: color.value }).then(refill));
    const name = h("input", { type: "text", value: c.name, "aria-label": `Name of ${c.name}`, maxlength: LONGEST_NAME });
    name.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) name.blur();
    });
    name.addEventListener("change", () => void state.changeClass({ op: "rename", class: c.id, name: name.value.trim() }).then(refill));
    const row = h("div", { class: "bar" }, color, name, h("span", { class: "number" }, count(n)));
    row.append(button("Remove", `Remove ${c.name}`, () => {
      if (!n) return void state.changeClass({ op: "remove", class: c.id, into: null }).then(refill);
      const into = h("select", { "aria-label": "Give its cells to" }, h("option", { value: "" }, `clear its ${count(n)} labels`), ...state.classes.filter((o) => o.id !== c.id).map((o) => h("option", { value: String(o.id) }, `give them to ${o.name}`)));
      fill(row, h("span", { class: "ellipsis" }, `Remove “${c.name}”: `), into, button("Remove", "Remove", () => void state.changeClass({ op: "remove", class: c.id, into: into.value === "" ? null : Number(into.value) }).then(refill)), button("Keep", "Keep", refill));
    }));
    return row;
  }
}
