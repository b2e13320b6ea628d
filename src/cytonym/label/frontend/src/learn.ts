// Progress, queue and model: what to label next, how fast it goes, how good the suggestions are, when to stop.

import { button, count, h, fill, select } from "./dom.ts";
import type { Header } from "./protocol.ts";
import type { State } from "./state.ts";

const percent = (value: number): string => `${Math.round(100 * value)} %`;
const wide = (share: number): string => `${100 * share}%`;

export class LearnPane {
  readonly element: HTMLElement;
  private numbers = h("div", { class: "numbers" });
  private meter = h("div", { class: "meter", role: "progressbar", "aria-label": "Labelled cells", "aria-valuemin": "0", "aria-valuemax": "100" }, h("span", {}));
  private model = h("p", { class: "model" });
  private jobName = h("span", { class: "ellipsis" });
  private jobFill = h("span", { class: "fill" });
  private jobShare = h("span", { class: "number" });
  private job = h("div", { class: "job", hidden: true }, this.jobName, h("span", { class: "track" }, this.jobFill), this.jobShare,
    button("Cancel", "Cancel the job", () => void this.state.command("cancel", "The job could not be cancelled")));
  private table = h("div", { class: "precision" });
  private hint = h("p", { class: "hint", hidden: true });
  private retrain: HTMLButtonElement;
  private page: HTMLButtonElement;
  private queue: HTMLButtonElement;
  private size = 50;

  constructor(private state: State) {
    const sizes = select("Cells to take from the queue", ["20", "50", "100", "200"].map((v) => [v, v]), "50", (value) => (this.size = Number(value)));
    const file = h("input", { type: "file", accept: "image/png,image/tiff,.png,.tif,.tiff", class: "hidden", tabindex: "-1", "aria-hidden": "true" });
    file.addEventListener("change", () => {
      const picked = file.files?.[0];
      if (picked) void picked.arrayBuffer().then((bytes) => state.search(bytes));
      file.value = "";
    });
    this.retrain = button("Retrain", "Retrain on all labels (t)", () => this.train());
    this.page = button("Next page", "", () => void state.nextPage());
    this.queue = button("Next", "Next cells of the queue (n)", () => this.next());
    this.element = h("section", { class: "pane learn", "aria-label": "Progress and learning" },
      h("div", { class: "bar" }, this.page, this.queue, sizes, this.retrain,
        button("Similar", "Cells like the current one (s)", () => void state.search()), file, h("span", { class: "grow" }),
        h("details", { class: "menu" }, h("summary", { title: "Longer jobs", "aria-label": "Longer jobs" }, "⋯"), h("div", { class: "drop" },
          button("Search by a picture…", "Cells like those of a picture (PNG or TIFF)", () => file.click()),
          button("New map", "Lay the map out anew, by what was learned", () => void state.command("remap", "The map could not be made")),
          button("Fine-tune the encoder", "Train the encoder itself on images and labels: a long job", () => void state.command("finetune", "The fine-tuning did not start", { steps: 500 }))))),
      h("div", { class: "scroll" }, this.numbers, this.meter, this.job, this.hint, this.model, this.table));
    state.on(["hello", "counts", "summary"], () => this.show());
    state.on(["hello", "model", "summary", "classes", "counts"], () => this.showModel());
    state.on(["hello", "model", "counts", "classes"], () => this.showButtons());
    state.on(["job"], () => this.showJob());
  }

  next(): void {
    void this.state.queue(this.size);
  }

  train(): void {
    void this.state.command("retrain", "The training did not start").then((answer) => answer && this.state.notify("info", "Training in the background: go on labelling."));
  }

  /** The next thing to do stands out. */
  private showButtons(): void {
    const lacking = this.state.lacking();
    const title = lacking || "Next page: suggestions of one class, those that take the least time (o)";
    this.page.title = title;
    this.page.setAttribute("aria-label", `Next page. ${title}`);
    this.page.classList.toggle("idle", lacking !== "");
    this.page.classList.toggle("primary", !lacking);
    this.queue.classList.toggle("primary", lacking !== "" && !this.state.trainable);
    this.retrain.classList.toggle("primary", lacking !== "" && this.state.trainable);
  }

  private show(): void {
    const { counts, summary, hello } = this.state;
    const share = counts.total ? counts.labelled / counts.total : 0;
    const own = ((summary["annotators"] ?? {}) as { [name: string]: Header })[hello.annotator] ?? {};
    const speed = own["labels_per_second"] as number | null | undefined;
    const many = ["bulk", "suggested"].some((source) => source in ((own["by_source"] ?? {}) as Header)); // else there is nothing to compare
    const ratio = many ? (own["ratio"] as number | null) : null;
    const number = (value: string, name: string): HTMLElement => h("div", {}, h("strong", {}, value), h("span", { class: "quiet" }, name));
    fill(this.numbers, number(count(counts.labelled), `of ${count(counts.total)} labelled`), number(speed ? count(Math.round(speed * 60)) : "–", "per minute"),
      ratio ? number(`${ratio.toFixed(1)} ×`, "speed-up") : null,
      summary["disagreements"] ? number(count(Number(summary["disagreements"])), "disagreements") : null);
    this.meter.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    (this.meter.firstElementChild as HTMLElement).style.width = `${100 * share}%`;
  }

  /** What suggestions are made from, where that is not an embedding. */
  private basis(): string {
    const { features, has_image } = this.state.hello;
    if (!features || features.some((name) => name.startsWith("X_"))) return "";
    if (!features.length) return " The table has no numbers to suggest by: end the page and start it with cytonym label --embed.";
    return ` They are made from ${features.map((name) => (name === "X" || name === "mean_intensity" ? "the intensities" : name)).join(", ")}, since there is no embedding${has_image ? ": “Fine-tune the encoder” (⋯) makes one" : ""}.`;
  }

  private showModel(): void {
    const { state } = this;
    const { model, summary } = state;
    this.model.textContent = model ? `Suggestions come from training ${model.version}, on ${count(model.trained_on)} labels.${this.basis()}` : `${state.lacking()}${this.basis()}`;
    const stop = summary["stop"] as { suggested?: boolean; reason?: string } | undefined;
    this.hint.hidden = !model || !stop?.reason;
    this.hint.classList.toggle("stop", Boolean(stop?.suggested));
    this.hint.textContent = stop?.suggested ? `You may stop: ${stop.reason}` : `Go on labelling. ${stop?.reason ?? ""}`;
    const rows = (summary["precision"] ?? []) as { class: number; name: string; checked: number; confirmed: number; precision: number | null; low: number | null; high: number | null }[];
    const told = rows.filter((row) => row.checked > 0);
    fill(this.table, told.length ? h("h3", { title: "How often suggestions were right, of the last ones that you looked at; with the 95 % interval" }, "Suggestions that were right") : null,
      ...told.map((row) => {
        const value = row.precision ?? 0;
        const color = state.classOf(row.class)?.color ?? null;
        return h("div", { class: "measure", title: `${row.name}: ${row.confirmed} of ${row.checked} right` }, h("span", { class: "ellipsis" }, row.name),
          h("span", { class: "track" }, h("span", { class: "fill", style: { width: wide(value), ...(color ? { background: color } : {}) } }),
            row.low !== null && row.high !== null ? h("span", { class: "interval", style: { left: wide(row.low), width: wide(row.high - row.low) } }) : null),
          h("span", { class: "number" }, `${percent(value)} of ${row.checked}`));
      }));
  }

  private showJob(): void {
    const job = this.state.job;
    const running = job?.state === "running";
    this.job.hidden = !running;
    if (!job || !running) return;
    const share = job.total ? job.done / job.total : 0;
    this.jobName.textContent = `${job.name}${job.text ? `: ${job.text}` : ""}`;
    this.jobFill.style.width = wide(share);
    this.jobShare.textContent = percent(share);
  }
}
