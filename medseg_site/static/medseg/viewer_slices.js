// Slices of one image and its label map: read from the server, decoded, and kept while they are near.
const KEPT_BYTES = 256 * 2 ** 20;
const AHEAD = 3;

/**
 * @typedef {object} Slice
 * @property {ImageBitmap} image
 * @property {Uint8Array} labels  index of the class of each pixel
 * @property {number} width
 * @property {number} height
 * @property {Uint8ClampedArray} pixels  RGBA of the image
 * @property {Uint8Array} [certainty]  of each pixel, 255 is sure; there once it was asked for
 */

/**
 * Where pixels are drawn that nobody sees.
 * @param {number} width
 * @param {number} height
 * @param {CanvasRenderingContext2DSettings} [settings]
 */
export function offscreen(width, height, settings) {
  const context = new OffscreenCanvas(width, height).getContext("2d", settings);
  if (!context) throw new Error("This browser cannot draw on a canvas.");
  return context;
}

/**
 * @param {string} url
 * @param {AbortSignal} [signal]
 */
async function bitmapOf(url, signal) {
  const response = await fetch(url, { signal });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.errors?.[0]?.detail || `The server answered with status ${response.status}.`);
  }
  // Neither colour management nor premultiplied alpha: a label map's grey values must arrive as they are.
  return createImageBitmap(await response.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/** @param {ImageBitmap} bitmap */
function pixelsOf(bitmap) {
  const context = offscreen(bitmap.width, bitmap.height, { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

/**
 * The first channel of a grey picture.
 * @param {string} url
 * @param {AbortSignal} [signal]
 */
async function greyOf(url, signal) {
  const bitmap = await bitmapOf(url, signal);
  const rgba = pixelsOf(bitmap);
  const grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let index = 0; index < grey.length; index++) grey[index] = rgba[index * 4];
  const found = { grey, width: bitmap.width, height: bitmap.height };
  bitmap.close();
  return found;
}

/**
 * @param {string} base
 * @param {string} query
 * @param {AbortSignal} signal
 * @returns {Promise<Slice>}
 */
async function loadSlice(base, query, signal) {
  const [image, mask] = await Promise.all([
    bitmapOf(`${base}image/${query}`, signal),
    greyOf(`${base}labels/${query}`, signal),
  ]);
  return { image, labels: mask.grey, width: mask.width, height: mask.height, pixels: pixelsOf(image) };
}

export class SliceSource {
  /**
   * @param {string} base  ends with a slash
   * @param {number} count  1 for a picture
   */
  constructor(base, count) {
    this.base = base;
    this.count = count;
    /** @type {Map<number, Slice>} */
    this.slices = new Map();
    /** @type {Map<number, { promise: Promise<Slice>, controller: AbortController }>} */
    this.loading = new Map();
  }

  /**
   * The slice, from memory or the server. Rejects with an Error whose message can be shown.
   * @param {number} index
   */
  async get(index) {
    const found = this.slices.get(index);
    if (found) {
      this.slices.delete(index);
      this.slices.set(index, found); // used last goes last
      return found;
    }
    let loading = this.loading.get(index);
    if (!loading) {
      const controller = new AbortController();
      const query = this.count > 1 ? `?slice=${index}` : "";
      const promise = loadSlice(this.base, query, controller.signal)
        .then((slice) => this.keep(index, slice))
        .finally(() => this.loading.delete(index));
      loading = { promise, controller };
      this.loading.set(index, loading);
    }
    return loading.promise;
  }

  /**
   * How sure the model is in each pixel of a slice, 255 is sure: read when it is asked for, and kept with the slice.
   * @param {number} index
   */
  async certainty(index) {
    const slice = await this.get(index);
    slice.certainty ||= (await greyOf(`${this.base}certainty/?slice=${index}`)).grey;
    return slice.certainty;
  }

  /**
   * @param {number} index
   * @param {Slice} slice
   */
  keep(index, slice) {
    this.slices.set(index, slice);
    const most = Math.max(2 * AHEAD + 1, Math.floor(KEPT_BYTES / (slice.width * slice.height * 10)));
    for (const [oldest, { image }] of this.slices) {
      if (this.slices.size <= most) break;
      image.close();
      this.slices.delete(oldest);
    }
    return slice;
  }

  /**
   * Read the neighbours ahead of time, nearest first, and give up on what is far away by now.
   * @param {number} index
   */
  prefetch(index) {
    for (const [other, { controller }] of this.loading) if (Math.abs(other - index) > AHEAD) controller.abort();
    for (let step = 1; step <= AHEAD; step++) {
      for (const near of [index + step, index - step]) {
        if (near >= 0 && near < this.count && !this.slices.has(near)) this.get(near).catch(() => {});
      }
    }
  }
}
