// Draws one slice on one or more canvases that share zoom and position.
const MOST_ZOOM = 64;

function paint(slice, classes) {
  const canvas = new OffscreenCanvas(slice.width, slice.height);
  const context = canvas.getContext("2d");
  const data = context.createImageData(slice.width, slice.height);
  const words = new Uint32Array(data.data.buffer);
  const table = classes.map(({ color, shown }) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return shown ? ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0 : 0;
  });
  for (let index = 0; index < words.length; index++) words[index] = table[slice.labels[index]] || 0;
  context.putImageData(data, 0, 0);
  return canvas;
}

const UNSURE = (255 << 16) | (60 << 8) | 255; // magenta: no image is, and few classes are

/** Opaque where the network is unsure: 255 - certainty is the alpha. */
function paintUnsure(certainty, { width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  const words = new Uint32Array(data.data.buffer);
  const table = Uint32Array.from({ length: 256 }, (_, level) => (((255 - level) << 24) | UNSURE) >>> 0);
  for (let index = 0; index < words.length; index++) words[index] = table[certainty[index]];
  context.putImageData(data, 0, 0);
  return canvas;
}

export class Stage {
  /** `panes`: [{canvas, image: bool, labels: "blend" | "solid" | null}]; `size`: [width, height] of the image in pixels. */
  constructor(panes, size) {
    this.panes = panes;
    [this.width, this.height] = size;
    this.zoom = 1;
    this.center = [this.width / 2, this.height / 2];
    this.opacity = 0.5;
    this.labelsShown = true;
    this.slice = null;
    this.colours = null;
    this.certainty = null;
    this.doubt = null;
    this.waiting = false;
    this.observer = new ResizeObserver(() => this.draw());
    for (const pane of panes) this.observer.observe(pane.canvas);
  }

  /** `certainty`: of the present slice; null takes it away. */
  setCertainty(certainty) {
    this.certainty = certainty;
    this.doubt = certainty && paintUnsure(certainty, this.slice);
    this.draw();
  }

  setSlice(slice, classes) {
    this.slice = slice;
    this.certainty = this.doubt = null; // that of another slice
    this.setClasses(classes);
  }

  setClasses(classes) {
    this.colours = this.slice && paint(this.slice, classes);
    this.draw();
  }

  /** Screen pixels for one image pixel in this canvas at the present zoom. */
  scale(canvas) {
    return Math.min(canvas.clientWidth / this.width, canvas.clientHeight / this.height) * this.zoom;
  }

  /** Image coordinates [x, y] of a point of the window. */
  toImage(canvas, clientX, clientY) {
    const box = canvas.getBoundingClientRect();
    const scale = this.scale(canvas);
    return [
      this.center[0] + (clientX - box.left - box.width / 2) / scale,
      this.center[1] + (clientY - box.top - box.height / 2) / scale,
    ];
  }

  /** Zoom by a factor; the image point under [clientX, clientY] stays where it is. */
  zoomBy(factor, canvas, clientX, clientY) {
    const zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const [x, y] = this.toImage(canvas, clientX, clientY);
    const change = this.zoom / zoom;
    this.center = [x + (this.center[0] - x) * change, y + (this.center[1] - y) * change];
    this.zoom = zoom;
    this.clamp();
    this.draw();
  }

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

  drawPane({ canvas, image, labels }) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
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
    if (labels && (this.labelsShown || labels === "solid")) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = labels === "solid" ? 1 : this.opacity;
      context.drawImage(this.colours, 0, 0, this.width, this.height);
      context.globalAlpha = 1;
    }
    if (image && labels && this.doubt) context.drawImage(this.doubt, 0, 0, this.width, this.height);
  }
}
