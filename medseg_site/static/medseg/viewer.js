// The image viewer: everything the pages know of it is `mountViewer` and the JSON beside it, so that another one can take its place.
import { SliceSource } from "./viewer_slices.js";
import { Stage } from "./viewer_stage.js";

const PANES = {
  overlay: { image: true, labels: "blend" },
  image: { image: true, labels: null },
  mask: { image: false, labels: "solid" },
};

/**
 * `root` holds the controls and canvases of templates/partials/viewer.html. The JSON of the element `data-config` names:
 * `base` (address with image/ and labels/ below it), `shape` ([H, W] or [D, H, W]), `classes` ([{value, name, color}];
 * the first is background), `name`, `certainty` (whether there is certainty/ as well).
 */
export function mountViewer(root) {
  const config = JSON.parse(document.getElementById(root.dataset.config).textContent);
  new Viewer(root, config).start();
}

class Viewer {
  constructor(root, { base, shape, classes }) {
    this.root = root;
    this.count = shape.length === 3 ? shape[0] : 1;
    this.index = Math.floor(this.count / 2);
    this.classes = classes.map((item, at) => ({ ...item, shown: at > 0 }));
    this.source = new SliceSource(base, this.count);
    const panes = [...root.querySelectorAll("[data-pane]")].map((canvas) => ({
      canvas,
      ...PANES[canvas.dataset.pane],
    }));
    this.stage = new Stage(panes, [shape.at(-1), shape.at(-2)]);
    this.part = (name) => root.querySelector(`[data-${name}]`);
    root.style.setProperty("--image-ratio", `${shape.at(-1)} / ${shape.at(-2)}`);
    root.style.setProperty("--image-ratio-number", shape.at(-1) / shape.at(-2));
  }

  start() {
    this.unsure = false;
    this.connectControls();
    this.connectLegend();
    this.connectKeys();
    for (const { canvas } of this.stage.panes) this.connectPointer(canvas);
    this.show(this.index);
  }

  async show(index) {
    this.index = Math.min(this.count - 1, Math.max(0, index));
    const wanted = this.index;
    const slider = this.part("slice");
    if (slider) {
      slider.value = wanted;
      this.part("slice-text").textContent = `${wanted + 1} / ${this.count}`;
    }
    this.root.setAttribute("aria-busy", "true");
    try {
      const slice = await this.source.get(wanted);
      if (wanted !== this.index) return; // somebody has scrolled on
      this.stage.setSlice(slice, this.classes);
      this.say("");
      if (this.unsure) await this.showUnsure(wanted);
      this.source.prefetch(wanted);
    } catch (error) {
      if (wanted === this.index && error.name !== "AbortError")
        this.say(`The picture could not be loaded. ${error.message}`);
    } finally {
      if (wanted === this.index) this.root.removeAttribute("aria-busy");
    }
  }

  say(text) {
    this.part("viewer-problem").textContent = text;
    this.part("viewer-problem").hidden = !text;
  }

  connectControls() {
    const opacity = this.part("opacity");
    opacity.addEventListener("input", () => {
      this.stage.opacity = Number(opacity.value) / 100;
      this.part("opacity-text").textContent = `${opacity.value} %`;
      this.stage.draw();
    });
    this.stage.opacity = Number(opacity.value) / 100;
    for (const mode of this.root.querySelectorAll("[data-mode]")) {
      mode.addEventListener("change", () => {
        this.root.dataset.shown = mode.value;
        this.stage.draw();
      });
    }
    this.part("slice")?.addEventListener("input", (event) => this.show(Number(event.target.value)));
    this.part("unsure")?.addEventListener("click", () => this.toggleUnsure());
    this.part("blink").addEventListener("click", () => this.blink());
    this.part("zoom-in").addEventListener("click", () => this.zoomMiddle(1.5));
    this.part("zoom-out").addEventListener("click", () => this.zoomMiddle(1 / 1.5));
    this.part("zoom-reset").addEventListener("click", () => this.resetZoom());
  }

  connectLegend() {
    for (const box of this.root.querySelectorAll("[data-class]")) {
      box.addEventListener("change", () => {
        this.classes[Number(box.dataset.class)].shown = box.checked;
        this.stage.setClasses(this.classes);
      });
      box.checked = this.classes[Number(box.dataset.class)].shown;
    }
  }

  blink() {
    this.stage.labelsShown = !this.stage.labelsShown;
    this.part("blink").setAttribute("aria-pressed", String(!this.stage.labelsShown));
    this.stage.draw();
  }

  async toggleUnsure() {
    this.unsure = !this.unsure;
    this.part("unsure").setAttribute("aria-pressed", String(this.unsure));
    this.part("unsure-scale").hidden = !this.unsure;
    if (!this.unsure) return this.stage.setCertainty(null);
    try {
      await this.showUnsure(this.index);
    } catch (error) {
      this.say(`The map of certainty could not be loaded. ${error.message}`);
    }
  }

  async showUnsure(index) {
    const map = await this.source.certainty(index);
    if (this.unsure && index === this.index) this.stage.setCertainty(map);
  }

  zoomMiddle(factor) {
    const canvas = this.stage.panes.map((pane) => pane.canvas).find((item) => item.clientWidth);
    const box = canvas.getBoundingClientRect();
    this.zoomAt(factor, canvas, box.left + box.width / 2, box.top + box.height / 2);
  }

  zoomAt(factor, canvas, x, y) {
    this.stage.zoomBy(factor, canvas, x, y);
    this.zoomed();
  }

  resetZoom() {
    this.stage.reset();
    this.zoomed();
  }

  zoomed() {
    const isIn = this.stage.zoom > 1;
    this.root.classList.toggle("is-zoomed", isIn); // then a finger moves the image, not the page
    this.part("zoom-out").disabled = !isIn;
    this.part("zoom-reset").disabled = !isIn;
    this.part("zoom-text").textContent = `${Math.round(this.stage.zoom * 100)} %`;
  }

  connectKeys() {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    const stop = new AbortController();
    const onKey = (event) => {
      if (!this.root.isConnected) return stop.abort();
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (
        event.target.closest(
          "input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable]",
        )
      )
        return;
      if (event.key === "o") return this.blink();
      if (event.key === "u" && this.part("unsure")) return this.toggleUnsure();
      if (!event.target.closest("[data-stage]")) return;
      const actions = {
        "+": () => this.zoomMiddle(1.5),
        "-": () => this.zoomMiddle(1 / 1.5),
        0: () => this.resetZoom(),
      };
      if (steps[event.key] && this.count > 1) this.show(this.index + steps[event.key]);
      else if (actions[event.key]) actions[event.key]();
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", onKey, { signal: stop.signal });
  }

  connectPointer(canvas) {
    const fingers = new Map();
    const spread = () => {
      const [one, two] = [...fingers.values()];
      return Math.hypot(one.x - two.x, one.y - two.y);
    };
    canvas.addEventListener("wheel", (event) => this.onWheel(event, canvas), { passive: false });
    canvas.addEventListener("dblclick", () => this.resetZoom());
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.read(canvas, event.clientX, event.clientY);
      const finger = fingers.get(event.pointerId);
      if (!finger) return;
      const before = fingers.size === 2 ? spread() : 0;
      const [deltaX, deltaY] = [event.clientX - finger.x, event.clientY - finger.y];
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (fingers.size === 2) {
        const [one, two] = [...fingers.values()];
        this.zoomAt(spread() / (before || 1), canvas, (one.x + two.x) / 2, (one.y + two.y) / 2);
      } else {
        this.stage.panBy(deltaX, deltaY, canvas);
      }
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener(
      "pointerleave",
      () => (this.part("readout").textContent = this.part("readout").dataset.empty),
    );
  }

  onWheel(event, canvas) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY / 300), canvas, event.clientX, event.clientY);
    } else if (this.count > 1) {
      event.preventDefault();
      this.show(this.index + Math.sign(event.deltaY));
    }
  }

  read(canvas, clientX, clientY) {
    const { slice, width, height } = this.stage;
    const [x, y] = this.stage.toImage(canvas, clientX, clientY).map(Math.floor);
    if (!slice || x < 0 || y < 0 || x >= width || y >= height) return;
    const at = y * slice.width + x;
    const [red, green, blue] = slice.pixels.slice(at * 4, at * 4 + 3);
    const grey = red === green && green === blue ? `grey ${red}` : `RGB ${red} ${green} ${blue}`;
    const found = this.classes[slice.labels[at]];
    const sure = this.stage.certainty ? ` · ${Math.round(this.stage.certainty[at] / 2.55)} % sure` : "";
    this.part("readout").textContent =
      `x ${x}, y ${y} · ${grey} · ${found ? `${found.name} (${found.value})` : "no class"}${sure}`;
  }
}
