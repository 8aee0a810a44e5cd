// The image viewer: everything the pages know of it is `mountViewer` and the JSON beside it, so that another one can take its place.
import { attribute, find, messageOf, readJson } from "./page.js";
import { SliceSource } from "./viewer_slices.js";
import { Stage } from "./viewer_stage.js";

/** @import { Class, Pane } from "./viewer_stage.js" */

/** @type {Record<string, Omit<Pane, "canvas">>} */
const PANES = {
  overlay: { image: true, labels: "blend" },
  image: { image: true, labels: null },
  mask: { image: false, labels: "solid" },
};

/**
 * What the JSON says that `data-config` names.
 * @typedef {object} Config
 * @property {string} base  address with image/ and labels/ below it
 * @property {number[]} shape  [H, W] or [D, H, W]
 * @property {Omit<Class, "shown">[]} classes  the first is background
 * @property {string} name
 * @property {boolean} [certainty]  whether there is certainty/ as well
 */

/** @param {HTMLElement} root  holds the controls and canvases of templates/partials/viewer.html */
export function mountViewer(root) {
  new Viewer(root, readJson(attribute(root, "data-config"))).start();
}

class Viewer {
  /**
   * @param {HTMLElement} root
   * @param {Config} config
   */
  constructor(root, { base, shape, classes, certainty }) {
    const [height, width] = shape.slice(-2);
    this.root = root;
    this.hasCertainty = Boolean(certainty);
    this.count = shape.length === 3 ? shape[0] : 1;
    this.index = Math.floor(this.count / 2);
    this.classes = classes.map((item, at) => ({ ...item, shown: at > 0 }));
    this.source = new SliceSource(base, this.count);
    /** @type {NodeListOf<HTMLCanvasElement>} */
    const canvases = root.querySelectorAll("[data-pane]");
    const panes = [...canvases].map((canvas) => ({ canvas, ...PANES[attribute(canvas, "data-pane")] }));
    this.stage = new Stage(panes, width, height);
    this.unsure = false;
    root.style.setProperty("--image-ratio", `${width} / ${height}`);
    root.style.setProperty("--image-ratio-number", String(width / height));
  }

  /** @param {string} name  of the attribute data-<name> */
  part(name) {
    return find(this.root, `[data-${name}]`, HTMLElement);
  }

  /** @param {string} name */
  input(name) {
    return find(this.root, `[data-${name}]`, HTMLInputElement);
  }

  /** @param {string} name */
  button(name) {
    return find(this.root, `[data-${name}]`, HTMLButtonElement);
  }

  start() {
    this.connectControls();
    this.connectLegend();
    this.connectKeys();
    for (const { canvas } of this.stage.panes) this.connectPointer(canvas);
    this.show(this.index);
  }

  /** @param {number} index */
  async show(index) {
    this.index = Math.min(this.count - 1, Math.max(0, index));
    const wanted = this.index;
    if (this.count > 1) {
      this.input("slice").value = String(wanted);
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
      const isAborted = error instanceof DOMException && error.name === "AbortError";
      if (wanted === this.index && !isAborted) this.say(`The picture could not be loaded. ${messageOf(error)}`);
    } finally {
      if (wanted === this.index) this.root.removeAttribute("aria-busy");
    }
  }

  /** @param {string} text */
  say(text) {
    this.part("viewer-problem").textContent = text;
    this.part("viewer-problem").hidden = !text;
  }

  connectControls() {
    const opacity = this.input("opacity");
    opacity.addEventListener("input", () => {
      this.stage.opacity = Number(opacity.value) / 100;
      this.part("opacity-text").textContent = `${opacity.value} %`;
      this.stage.draw();
    });
    this.stage.opacity = Number(opacity.value) / 100;
    /** @type {NodeListOf<HTMLInputElement>} */
    const modes = this.root.querySelectorAll("[data-mode]");
    for (const mode of modes) {
      mode.addEventListener("change", () => {
        this.root.dataset.shown = mode.value;
        this.stage.draw();
      });
    }
    if (this.count > 1) {
      const slider = this.input("slice");
      slider.addEventListener("input", () => this.show(Number(slider.value)));
    }
    if (this.hasCertainty) this.part("unsure").addEventListener("click", () => this.toggleUnsure());
    this.part("blink").addEventListener("click", () => this.blink());
    this.part("zoom-in").addEventListener("click", () => this.zoomMiddle(1.5));
    this.part("zoom-out").addEventListener("click", () => this.zoomMiddle(1 / 1.5));
    this.part("zoom-reset").addEventListener("click", () => this.resetZoom());
  }

  connectLegend() {
    /** @type {NodeListOf<HTMLInputElement>} */
    const boxes = this.root.querySelectorAll("[data-class]");
    for (const box of boxes) {
      const item = this.classes[Number(box.dataset.class)];
      box.addEventListener("change", () => {
        item.shown = box.checked;
        this.stage.setClasses(this.classes);
      });
      box.checked = item.shown;
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
      this.say(`The map of certainty could not be loaded. ${messageOf(error)}`);
    }
  }

  /** @param {number} index */
  async showUnsure(index) {
    const map = await this.source.certainty(index);
    if (this.unsure && index === this.index) this.stage.setCertainty(map);
  }

  /** @param {number} factor */
  zoomMiddle(factor) {
    const canvas = this.stage.panes.map((pane) => pane.canvas).find((item) => item.clientWidth);
    if (!canvas) return;
    const box = canvas.getBoundingClientRect();
    this.zoomAt(factor, canvas, box.left + box.width / 2, box.top + box.height / 2);
  }

  /**
   * @param {number} factor
   * @param {HTMLCanvasElement} canvas
   * @param {number} x  of the window
   * @param {number} y
   */
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
    this.button("zoom-out").disabled = !isIn;
    this.button("zoom-reset").disabled = !isIn;
    this.part("zoom-text").textContent = `${Math.round(this.stage.zoom * 100)} %`;
  }

  connectKeys() {
    /** @type {Record<string, number>} */
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    const stop = new AbortController();
    /** @param {KeyboardEvent} event */
    const onKey = (event) => {
      if (!this.root.isConnected) return stop.abort();
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
      if (
        event.target.closest(
          "input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable]",
        )
      )
        return;
      if (event.key === "o") return this.blink();
      if (event.key === "u" && this.hasCertainty) return this.toggleUnsure();
      if (!event.target.closest("[data-stage]")) return;
      /** @type {Record<string, () => void>} */
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

  /** @param {HTMLCanvasElement} canvas */
  connectPointer(canvas) {
    /** @type {Map<number, { x: number, y: number }>} */
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
    canvas.addEventListener("pointerup", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => {
      const readout = this.part("readout");
      readout.textContent = attribute(readout, "data-empty");
    });
  }

  /**
   * @param {WheelEvent} event
   * @param {HTMLCanvasElement} canvas
   */
  onWheel(event, canvas) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY / 300), canvas, event.clientX, event.clientY);
    } else if (this.count > 1) {
      event.preventDefault();
      this.show(this.index + Math.sign(event.deltaY));
    }
  }

  /**
   * Says what is in the image under a point of the window.
   * @param {HTMLCanvasElement} canvas
   * @param {number} clientX
   * @param {number} clientY
   */
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
