// The module as a notebook runs it: `render` with a model, here one that the made-up server stands behind. ?cells=2000
import module from "../src/index.ts";
import { Fake } from "./fake.ts";

const fake = new Fake({ cells: 2000, classes: 6, channels: 8, rgb: false, image: true, labelled: 200 });
let heard: ((content: unknown, buffers: DataView[]) => void) | null = null;
fake.onMessage = (header, buffers) => heard?.(header, buffers.map((b) => new DataView(b)));
const model = {
  send: (content: unknown, _callbacks?: unknown, buffers: unknown[] = []) => fake.send(content as never, buffers as never),
  on: (_name: string, callback: unknown) => (heard = callback as never),
  off: () => (heard = null),
};
const element = document.getElementById("desk") as HTMLElement;
Object.assign(window, { close_: module.render({ model: model as never, el: element }), outside: [] as string[] });
document.addEventListener("keydown", (event) => (window as unknown as { outside: string[] }).outside.push(event.key));
