// Slices of one image and its label map: read from the server, decoded, and kept while they are near.
const KEPT_BYTES = 256 * 2 ** 20;
const AHEAD = 3;

/** @typedef {{image: ImageBitmap, labels: Uint8Array, width: number, height: number, pixels: Uint8ClampedArray}} Slice */

async function bitmapOf(url, signal) {
  const response = await fetch(url, { signal });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.errors?.[0]?.detail || `The server answered with status ${response.status}.`);
  }
  // Neither colour management nor premultiplied alpha: a label map's grey values must arrive as they are.
  return createImageBitmap(await response.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

/** The first channel of a grey picture: Uint8Array. */
async function greyOf(url, signal) {
  const bitmap = await bitmapOf(url, signal);
  const rgba = pixelsOf(bitmap);
  const grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let index = 0; index < grey.length; index++) grey[index] = rgba[index * 4];
  const found = { grey, width: bitmap.width, height: bitmap.height };
  bitmap.close();
  return found;
}

async function loadSlice(base, query, signal) {
  const [image, mask] = await Promise.all([
    bitmapOf(`${base}image/${query}`, signal),
    greyOf(`${base}labels/${query}`, signal),
  ]);
  return { image, labels: mask.grey, width: mask.width, height: mask.height, pixels: pixelsOf(image) };
}

export class SliceSource {
  /** `base` ends with a slash; `count` is 1 for a picture. */
  constructor(base, count) {
    this.base = base;
    this.count = count;
    this.slices = new Map();
    this.loading = new Map();
  }

  /** The slice, from memory or the server. Rejects with an Error whose message can be shown. */
  async get(index) {
    const found = this.slices.get(index);
    if (found) {
      this.slices.delete(index);
      this.slices.set(index, found); // used last goes last
      return found;
    }
    if (!this.loading.has(index)) {
      const controller = new AbortController();
      const query = this.count > 1 ? `?slice=${index}` : "";
      const promise = loadSlice(this.base, query, controller.signal)
        .then((slice) => this.keep(index, slice))
        .finally(() => this.loading.delete(index));
      this.loading.set(index, { promise, controller });
    }
    return this.loading.get(index).promise;
  }

  /** How sure the model is in each pixel of a slice, 255 is sure: read when it is asked for, and kept with the slice. */
  async certainty(index) {
    const slice = await this.get(index);
    slice.certainty ||= (await greyOf(`${this.base}certainty/?slice=${index}`)).grey;
    return slice.certainty;
  }

  keep(index, slice) {
    this.slices.set(index, slice);
    const most = Math.max(2 * AHEAD + 1, Math.floor(KEPT_BYTES / (slice.width * slice.height * 10)));
    for (const oldest of this.slices.keys()) {
      if (this.slices.size <= most) break;
      this.slices.get(oldest).image.close();
      this.slices.delete(oldest);
    }
    return slice;
  }

  /** Read the neighbours ahead of time, nearest first, and give up on what is far away by now. */
  prefetch(index) {
    for (const [other, { controller }] of this.loading) if (Math.abs(other - index) > AHEAD) controller.abort();
    for (let step = 1; step <= AHEAD; step++) {
      for (const near of [index + step, index - step]) {
        if (near >= 0 && near < this.count && !this.slices.has(near)) this.get(near).catch(() => {});
      }
    }
  }
}
