// One module for both hosts: a notebook calls `render`, the page calls `start`.

import { mount, type Desk } from "./app.ts";
import { ModelTransport, SocketTransport, type WidgetModel } from "./link.ts";

export function start(element: HTMLElement, url: string, protocols: string[] = []): Desk {
  const desk = mount(element, new SocketTransport(url, protocols), true);
  (element as unknown as { desk: Desk }).desk = desk; // for tests and timings
  return desk;
}

export default {
  render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
    const desk = mount(el, new ModelTransport(model), false);
    (el as unknown as { desk: Desk }).desk = desk;
    return () => desk.close();
  },
};
