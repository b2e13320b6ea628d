// The keyboard: which key does what.

export type Action =
  | "unsure" | "notCell" | "clear" | "undo" | "redo" | "all" | "invert" | "accept" | "retrain" | "next" | "offer" | "search" | "map"
  | "color" | "palette" | "help" | "escape" | "left" | "right" | "up" | "down" | "pageNext" | "pageBack" | "toggle" | "view"
  | "zoomIn" | "zoomOut" | "fit" | "panLeft" | "panRight" | "panUp" | "panDown" | "filter" | "outlines" | "extendLeft" | "extendRight";

export type Command = { action: Action } | { classIndex: number };

export interface KeyLike {
  key: string;
  shiftKey: boolean;
  ctrlKey: boolean;
  metaKey: boolean;
  altKey: boolean;
}

/** Keys of the classes, in order: nine digits, then letters that no command uses. Classes after these: type to find. */
export const CLASS_KEYS = [..."123456789", ..."bdefghjkqrwy"];

const PLAIN: { [key: string]: Action } = {
  u: "unsure", x: "notCell", Backspace: "clear", Delete: "clear", "0": "clear", z: "undo", a: "all", i: "invert",
  Enter: "accept", t: "retrain", n: "next", o: "offer", s: "search", m: "map", c: "color", l: "palette", "/": "palette", "?": "help",
  Escape: "escape", ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", PageDown: "pageNext",
  PageUp: "pageBack", " ": "toggle", v: "view", "+": "zoomIn", "=": "zoomIn", "-": "zoomOut", Home: "fit", p: "filter", ".": "outlines",
};
const SHIFTED: { [key: string]: Action } = {
  z: "redo", ArrowLeft: "extendLeft", ArrowRight: "extendRight",
};
const ALTED: { [key: string]: Action } = {
  ArrowLeft: "panLeft", ArrowRight: "panRight", ArrowUp: "panUp", ArrowDown: "panDown",
};

/** What goes on as long as its key is held; everything else is done once, so that no key labels cells that nobody has looked at. */
const HELD = new Set<Action>([
  "left", "right", "up", "down", "extendLeft", "extendRight", "pageNext", "pageBack", "zoomIn", "zoomOut", "panLeft", "panRight", "panUp", "panDown",
]);

export const goesOn = (command: Command): boolean => "action" in command && HELD.has(command.action);

/** What a key asks for, or null. Letters count the same with caps lock on. */
export function commandFor(event: KeyLike): Command | null {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (event.altKey) return null;
    if (key === "z") return { action: event.shiftKey ? "redo" : "undo" };
    if (key === "y") return { action: "redo" };
    return null;
  }
  if (event.altKey) return ALTED[key] ? { action: ALTED[key] } : null;
  if (event.shiftKey && SHIFTED[key]) return { action: SHIFTED[key] };
  if (event.shiftKey && /^[a-z]$/.test(key)) return null;
  const action = PLAIN[key];
  if (action) return { action };
  const classIndex = CLASS_KEYS.indexOf(key);
  return classIndex >= 0 ? { classIndex } : null;
}

/** Whether keys belong to the element: text is being typed, or a menu or slider has the focus and would use this key. */
export function takesKeys(tag: string, type: string, editable: boolean, key: string): boolean {
  if (editable) return true;
  if (tag === "TEXTAREA") return true;
  if (tag === "SELECT") return key !== "Escape";
  if (tag === "INPUT") {
    if (["checkbox", "radio", "button", "color", "file"].includes(type)) return key === " " || key === "Enter";
    if (type === "range") return key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(key);
    return true;
  }
  if (tag === "BUTTON" || tag === "A" || tag === "SUMMARY") return key === "Enter" || key === " ";
  return false;
}

export const HELP: [string, [string, string][]][] = [
  ["Label the picked cells, or the current one", [
    ["1 … 9, then letters", "give the class shown with that key"],
    ["l  or  /", "type to find any class"],
    ["u", "unsure"],
    ["x", "not a cell"],
    ["0  or  ⌫", "clear the label"],
    ["Enter", "accept the suggestions as labels"],
    ["z  or  Ctrl-Z", "undo"],
    ["Shift-Z  or  Ctrl-Y", "redo"],
  ]],
  ["Gallery", [
    ["← → ↑ ↓", "move the current cell"],
    ["Space", "pick or unpick the current cell"],
    ["Shift-← Shift-→", "move and pick"],
    ["click, drag", "pick; Shift-click: all between; Alt-drag: unpick"],
    ["a", "pick all, or none"],
    ["i", "invert the picks"],
    ["PgUp PgDn", "page back, page on"],
    [".", "outlines on or off"],
  ]],
  ["Map", [
    ["drag", "lasso; with Shift add, with Alt or Ctrl take away"],
    ["click", "choose one cell"],
    ["v", "show the cells in view in the gallery"],
    ["m", "embedding or tissue"],
    ["c", "next colouring"],
    ["p", "next filter"],
    ["+  −  Home", "zoom in, out, all"],
    ["Alt-arrows", "move the map"],
  ]],
  ["Learning", [
    ["o", "next page: suggestions of one class, all picked; click takes out"],
    ["Enter", "give the class of the page to the picked cells"],
    ["a class's key", "of another class: for the cell taken out last"],
    ["n", "next cells of the queue"],
    ["s", "search cells like the current one"],
    ["t", "retrain"],
    ["Esc", "close, or drop the picks"],
    ["?", "this sheet"],
  ]],
];
