// Draws one slice on one or more canvases that share zoom and position.
import { offscreen } from "./viewer_slices.js";

/** @import { Slice } from "./viewer_slices.js" */
/** @typedef {{ value: number, name: string, color: string, shown: boolean }} Class  `color`: "#rrggbb". */
/** @typedef {{ canvas: HTMLCanvasElement, image: boolean, labels: "blend" | "solid" | null }} Pane */

const MOST_ZOOM = 64;

/**
 * A canvas whose pixels are coloured by a table of 0xAABBGGRR. What the table does not have is transparent.
 * @param {{ width: number, height: number }} size
 * @param {Uint8Array} values  one for each pixel
 * @param {ArrayLike<number>} table
 */
function paint({ width, height }, values, table) {
  const context = offscreen(width, height);
  const data = context.createImageData(width, height);
  const words = new Uint32Array(data.data.buffer);
  for (let index = 0; index < words.length; index++) words[index] = table[values[index]] || 0;
  context.putImageData(data, 0, 0);
  return context.canvas;
}

/**
 * @param {Slice} slice
 * @param {Class[]} classes
 */
function paintLabels(slice, classes) {
  const table = classes.map(({ color, shown }) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return shown ? ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0 : 0;
  });
  return paint(slice, slice.labels, table);
}

const UNSURE = (255 << 16) | (60 << 8) | 255; // magenta: no image is, and few classes are

/**
 * Opaque where the network is unsure: 255 - certainty is the alpha.
 * @param {Slice} slice
 * @param {Uint8Array} certainty
 */
function paintUnsure(slice, certainty) {
  const table = Uint32Array.from({ length: 256 }, (_, level) => (((255 - level) << 24) | UNSURE) >>> 0);
  return paint(slice, certainty, table);
}

export class Stage {
  /**
   * @param {Pane[]} panes
   * @param {number} width  of the image in pixels
   * @param {number} height
   */
  constructor(panes, width, height) {
    this.panes = panes;
    this.width = width;
    this.height = height;
    this.zoom = 1;
    this.center = [this.width / 2, this.height / 2];
    this.opacity = 0.5;
    this.labelsShown = true;
    /** @type {Slice | null} */
    this.slice = null;
    /** @type {OffscreenCanvas | null} */
    this.colours = null;
    /** @type {Uint8Array | null} */
    this.certainty = null;
    /** @type {OffscreenCanvas | null} */
    this.doubt = null;
    this.waiting = false;
    this.observer = new ResizeObserver(() => this.draw());
    for (const pane of panes) this.observer.observe(pane.canvas);
  }

  /** @param {Uint8Array | null} certainty  of the present slice; null takes it away */
  setCertainty(certainty) {
    this.certainty = certainty;
    this.doubt = this.slice && certainty && paintUnsure(this.slice, certainty);
    this.draw();
  }

  /**
   * @param {Slice} slice
   * @param {Class[]} classes
   */
  setSlice(slice, classes) {
    this.slice = slice;
    this.certainty = this.doubt = null; // that of another slice
    this.setClasses(classes);
  }

  /** @param {Class[]} classes */
  setClasses(classes) {
    this.colours = this.slice && paintLabels(this.slice, classes);
    this.draw();
  }

  /**
   * Screen pixels for one image pixel in this canvas at the present zoom.
   * @param {HTMLCanvasElement} canvas
   */
  scale(canvas) {
    return Math.min(canvas.clientWidth / this.width, canvas.clientHeight / this.height) * this.zoom;
  }

  /**
   * Image coordinates [x, y] of a point of the window.
   * @param {HTMLCanvasElement} canvas
   * @param {number} clientX
   * @param {number} clientY
   */
  toImage(canvas, clientX, clientY) {
    const box = canvas.getBoundingClientRect();
    const scale = this.scale(canvas);
    return [
      this.center[0] + (clientX - box.left - box.width / 2) / scale,
      this.center[1] + (clientY - box.top - box.height / 2) / scale,
    ];
  }

  /**
   * Zoom by a factor; the image point under [clientX, clientY] stays where it is.
   * @param {number} factor
   * @param {HTMLCanvasElement} canvas
   * @param {number} clientX
   * @param {number} clientY
   */
  zoomBy(factor, canvas, clientX, clientY) {
    const zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const [x, y] = this.toImage(canvas, clientX, clientY);
    const change = this.zoom / zoom;
    this.center = [x + (this.center[0] - x) * change, y + (this.center[1] - y) * change];
    this.zoom = zoom;
    this.clamp();
    this.draw();
  }

  /**
   * Move the image with a finger or the mouse.
   * @param {number} deltaX  screen pixels
   * @param {number} deltaY
   * @param {HTMLCanvasElement} canvas
   */
  panBy(deltaX, deltaY, canvas) {
    const scale = this.scale(canvas);
    this.center = [this.center[0] - deltaX / scale, this.center[1] - deltaY / scale];
    this.clamp();
    this.draw();
  }

  reset() {
    this.zoom = 1;
    this.clamp();
    this.draw();
  }

  /** Never past the edge: at zoom 1 the image is in the middle. */
  clamp() {
    const half = [this.width / 2 / this.zoom, this.height / 2 / this.zoom];
    const sizes = [this.width, this.height];
    this.center = this.center.map((value, axis) => Math.min(sizes[axis] - half[axis], Math.max(half[axis], value)));
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const pane of this.panes) this.drawPane(pane);
    });
  }

  /** @param {Pane} pane */
  drawPane({ canvas, image, labels }) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    const context = canvas.getContext("2d");
    if (!context || !width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.slice) return;
    const scale = this.scale(canvas) * ratio;
    context.setTransform(scale, 0, 0, scale, width / 2 - this.center[0] * scale, height / 2 - this.center[1] * scale);
    if (image) {
      context.imageSmoothingEnabled = scale < 3; // far in, pixels are to be seen as pixels
      context.drawImage(this.slice.image, 0, 0, this.width, this.height);
    } else {
      context.fillStyle = "#000";
      context.fillRect(0, 0, this.width, this.height);
    }
    if (labels && this.colours && (this.labelsShown || labels === "solid")) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = labels === "solid" ? 1 : this.opacity;
      context.drawImage(this.colours, 0, 0, this.width, this.height);
      context.globalAlpha = 1;
    }
    if (image && labels && this.doubt) context.drawImage(this.doubt, 0, 0, this.width, this.height);
  }
}
