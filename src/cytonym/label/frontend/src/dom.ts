// Elements, made so that text is only ever text.

type Child = Node | string | number | null | undefined | false;
type Props = { [name: string]: unknown };

/** An element. Strings become text nodes; `on…` are listeners, `class`, `style` (object) and `data-…`, `aria-…` as named. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") {
      element.addEventListener(name.slice(2), value as EventListener);
    } else if (name === "style") {
      for (const [key, v] of Object.entries(value as { [key: string]: string })) element.style.setProperty(key, v);
    } else if (name === "value") {
      (element as unknown as { value: string }).value = String(value);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else {
      element.setAttribute(name, String(value));
    }
  }
  fill(element, ...children);
  return element;
}

/** Puts these children in place of what an element has. */
export function fill(element: HTMLElement, ...children: Child[]): void {
  const nodes = children.filter((c): c is Node | string | number => c !== null && c !== undefined && c !== false);
  element.replaceChildren(...nodes.map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
}

export function button(text: string, title: string, onclick: () => void, props: Props = {}): HTMLButtonElement {
  return h("button", { type: "button", title, "aria-label": title, onclick, ...props }, text);
}

export function select(label: string, options: [string, string][], value: string, onchange: (value: string) => void): HTMLSelectElement {
  const element = h("select", { "aria-label": label, title: label });
  setOptions(element, options, value);
  element.addEventListener("change", () => onchange(element.value));
  return element;
}

export function setOptions(element: HTMLSelectElement, options: [string, string][], value: string): void {
  fill(element, ...options.map(([v, text]) => h("option", { value: v }, text)));
  element.value = value;
}

const ICONS = {
  move: "M8 1v14M1 8h14M8 1 6 3M8 1l2 2M8 15l-2-2M8 15l2-2M1 8l2-2M1 8l2 2M15 8l-2-2M15 8l-2 2",
  plus: "M8 3v10M3 8h10", minus: "M3 8h10", fit: "M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4", target: "M8 1v4M8 11v4M1 8h4M11 8h4M8 6.6A1.4 1.4 0 1 1 8 9.4 1.4 1.4 0 1 1 8 6.6",
  outline: "M8 2.5c3.5 0 6 2.3 6 5.6s-2.6 5.4-6 5.4-6-2-6-5.4S4.5 2.5 8 2.500M8 6.200A1.9 1.9 0 1 1 8 10 1.9 1.9 0 1 1 8 6.2", reset: "M3.5 8a4.7 4.7 0 1 0 1.5-3.400M5 1.800v3h3",
};

/** A button with a drawing in place of a word; its name is its title. */
export function iconButton(icon: keyof typeof ICONS, title: string, onclick: () => void, props: Props = {}): HTMLButtonElement {
  const element = button("", title, onclick, { class: "icon", ...props });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[icon]);
  svg.append(path);
  element.append(svg);
  return element;
}

export const NO_WEBGL = "This browser shows no pictures here: it offers no WebGL2, or has it switched off. Labels can still be given.";

const NUMBER = new Intl.NumberFormat("en");
export const count = (n: number): string => NUMBER.format(n);

/** A measured value in few characters. */
export const short = (value: number): string => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2))));

/** The size of a canvas in device pixels follows its element; says whether it changed. */
export function fitCanvas(canvas: HTMLCanvasElement, width: number, height: number): boolean {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const [w, t] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width === w && canvas.height === t) return false;
  canvas.width = w;
  canvas.height = t;
  return true;
}

/** Runs a function once in the next frame, however often it was asked for. */
export function eachFrame(run: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}
