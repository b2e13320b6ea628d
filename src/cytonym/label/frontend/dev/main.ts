// The page without a server: made-up cells, ?cells=20000&classes=6&rgb&noimage&labelled=300
import { mount } from "../src/app.ts";
import { Fake } from "./fake.ts";

const wanted = new URLSearchParams(location.search);
const number = (name: string, otherwise: number): number => Number(wanted.get(name) ?? otherwise);
const fake = new Fake({
  cells: number("cells", 20000), classes: number("classes", 6), channels: number("channels", 8), rgb: wanted.has("rgb"), image: !wanted.has("noimage"), labelled: number("labelled", 400),
});
const desk = mount(document.getElementById("desk") as HTMLElement, fake, true);
Object.assign(window, { desk, fake });
