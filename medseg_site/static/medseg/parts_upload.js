// Sends one large file in parts: several at once, again after an error, and only what is missing after a break of any length.
// The parts go where the platform's signed addresses point: to S3, or to the platform itself.
import { earlierUpload, forgetUpload, rememberUpload } from "./earlier_upload.js";
import { errorsOf, Refused } from "./refused.js";

/** @import { Upload } from "./earlier_upload.js" */

const PARALLEL = 4;
const MOST_TRIES = 5; // of one part that is answered with an error; a lost connection is waited for without end
const LONGEST_WAIT = 30;
const SPEED_SECONDS = 10;

/**
 * @typedef {object} Progress
 * @property {number} loaded  bytes that have arrived
 * @property {number} size  bytes
 * @property {number} speed  bytes per second; 0 while it is not known
 * @property {number | null} left  seconds
 * @property {string} note  why it does not go on
 * @property {boolean} paused
 */

class Interrupted extends Error {}
class Paused extends Error {}
export class Stopped extends Error {}

const LOST = "No connection. Waiting for it; the upload goes on by itself.";
const LOST_STORE = "No connection to the file store at HOST. The upload goes on by itself once there is one.";
const BUSY = "The server cannot take it just now. The upload goes on by itself.";

/**
 * Where a page is not served over TLS, browsers have no digest: then the server alone computes checksums.
 * @param {Blob} blob
 */
async function sha256(blob) {
  let bytes = null;
  try {
    bytes = await blob.arrayBuffer();
  } catch {
    throw new Refused(
      [{ attr: null, detail: "The file cannot be read any more: it was changed, moved or deleted. Choose it again." }],
      0,
    );
  }
  if (!globalThis.crypto?.subtle) return "";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class PartsUpload {
  /**
   * @param {object} options
   * @param {string} options.api
   * @param {Blob} options.file
   * @param {string} options.fileName
   * @param {string} options.identity  names the file in this browser's memory
   * @param {string} options.purpose
   * @param {string} options.csrf
   * @param {(state: Progress) => void} options.onChange
   */
  constructor({ api, file, fileName, identity, purpose, csrf, onChange }) {
    this.api = api;
    this.file = file;
    this.fileName = fileName;
    this.identity = identity;
    this.purpose = purpose;
    this.csrf = csrf;
    this.onChange = onChange;
    /** @type {string | null} */
    this.id = null;
    this.isPaused = false;
    this.note = "";
    this.done = 0; // bytes that are known to be there
    this.sent = 0; // bytes that went over the line, for the speed
    // Part number → its request, and the bytes of it that are on their way.
    /** @type {Map<number, { request: XMLHttpRequest, loaded: number }>} */
    this.flying = new Map();
    /** @type {[seconds: number, sent: number][]} */
    this.samples = [];
    this.cancelled = false;
    this.wake = () => {};
  }

  /** Resolves with the upload's id when the file is whole on the server. Throws Refused or Stopped. */
  async run() {
    const upload = (await this.again(() => this.#earlier())) ?? (await this.#begin());
    const { id, state, part_count: count } = upload;
    this.id = id;
    if (state !== "open") return id;
    const queue = Array.from({ length: count }, (_, index) => index + 1);
    const timer = setInterval(() => this.tell(), 500);
    try {
      await Promise.all(Array.from({ length: PARALLEL }, () => this.work(upload, queue)));
      await this.again(() => this.ask("POST", `${this.api}${id}/complete/`, {}));
    } catch (error) {
      this.halt(); // one part is refused: the others need not go on
      const isGone = error instanceof Refused && [404, 409].includes(error.status);
      if (isGone) forgetUpload(this.identity);
      const anew = "The server does not have the earlier parts any more. Press the button again to send the file anew.";
      throw isGone ? new Refused([{ attr: null, detail: anew }], error.status) : error;
    } finally {
      clearInterval(timer);
    }
    return id;
  }

  /** @returns {Promise<Upload>} */
  async #begin() {
    const body = { file_name: this.fileName, size: this.file.size, purpose: this.purpose };
    const upload = await this.again(() => this.ask("POST", this.api, body));
    rememberUpload(this.identity, upload.id);
    return { ...upload, arrived: new Map() };
  }

  async #earlier() {
    try {
      return await earlierUpload(this.api, this.identity);
    } catch (error) {
      throw error instanceof Refused ? error : new Interrupted(LOST);
    }
  }

  /**
   * @param {Upload} upload
   * @param {number[]} queue  part numbers
   */
  async work(upload, queue) {
    for (let number = queue.shift(); number !== undefined; number = queue.shift()) {
      await this.again(() => this.sendPart(upload, number));
    }
  }

  /**
   * @param {Upload} upload
   * @param {number} number
   */
  async sendPart({ id, part_size: size, arrived }, number) {
    const blob = this.file.slice((number - 1) * size, number * size);
    const checksum = await sha256(blob);
    const there = arrived.get(number);
    // What has arrived is compared, not believed: a file of the same name, size and date may hold something else.
    if (!there || (checksum && there.sha256 !== checksum)) {
      const checksums = checksum ? { [number]: checksum } : {};
      const signed = await this.ask("POST", `${this.api}${id}/sign/`, { part_numbers: [number], checksums });
      await this.put(number, new URL(signed.parts[0].url, location.origin), blob);
    }
    this.done += blob.size;
    this.tell();
  }

  /**
   * @param {number} number
   * @param {URL} url
   * @param {Blob} blob
   * @returns {Promise<void>}
   */
  put(number, url, blob) {
    this.check();
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not say how much has been sent
      const flight = { request, loaded: 0 };
      const land = () => this.flying.delete(number);
      /** @param {Error} error */
      const fail = (error) => {
        land();
        reject(error);
      };
      request.open("PUT", url);
      if (url.origin === location.origin) {
        request.setRequestHeader("X-CSRFToken", this.csrf);
        request.setRequestHeader("Accept", "application/json");
      }
      request.upload.addEventListener("progress", ({ loaded }) => {
        this.sent += loaded - flight.loaded;
        flight.loaded = loaded;
      });
      request.addEventListener("load", async () => {
        const { status } = request;
        if (status >= 200 && status < 300) {
          land();
          return resolve();
        }
        const answer = new Response(request.responseText || null, { status: Math.max(200, status) });
        fail(new Refused(await errorsOf(answer), status));
      });
      const lost = url.origin === location.origin || !navigator.onLine ? LOST : LOST_STORE.replace("HOST", url.host);
      request.addEventListener("error", () => fail(new Interrupted(lost)));
      request.addEventListener("abort", () => fail(this.cancelled ? new Stopped() : new Paused()));
      this.flying.set(number, flight);
      request.send(blob);
    });
  }

  /**
   * JSON from and to the platform.
   * @param {string} method
   * @param {string} path
   * @param {object} [body]
   */
  async ask(method, path, body) {
    this.check();
    const headers = { Accept: "application/json", "Content-Type": "application/json", "X-CSRFToken": this.csrf };
    let answer = null;
    try {
      answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    } catch {
      throw new Interrupted(LOST);
    }
    if (!answer.ok) throw new Refused(await errorsOf(answer), answer.status);
    return answer.status === 204 ? null : answer.json();
  }

  /**
   * Do something until it is done: waits for the connection, for a busy server, and while paused.
   * @template T
   * @param {() => Promise<T>} step
   */
  async again(step) {
    for (let round = 0, tries = 0; ; round++) {
      try {
        this.check();
        const result = await step();
        this.note = "";
        return result;
      } catch (error) {
        if (error instanceof Paused) {
          if (this.isPaused) await this.wait(null);
          round = 0;
          continue;
        }
        if (error instanceof Refused) {
          tries += 1;
          if (!this.mayPass(error, tries)) throw error;
        } else if (!(error instanceof Interrupted)) {
          throw error;
        }
        this.note = error instanceof Interrupted ? error.message : BUSY;
        this.tell();
        await this.wait(Math.min(LONGEST_WAIT, 2 ** round) * (0.75 + Math.random() / 2));
      }
    }
  }

  /**
   * Whether an answer may be another one next time: a busy server, an address that has expired, a part that was damaged.
   * @param {Refused} error
   * @param {number} tries
   */
  mayPass({ status, errors }, tries) {
    if (status === 507) return false; // a full disk stays full
    if (status >= 500 || status === 429 || status === 408) return true;
    const isDamaged = errors.some(({ code }) => code === "bad_checksum");
    return (isDamaged || status === 403) && tries < MOST_TRIES;
  }

  check() {
    if (this.cancelled) throw new Stopped();
    if (this.isPaused) throw new Paused();
  }

  /**
   * For so many seconds (null: until resumed), or until something has changed.
   * @param {number | null} seconds
   * @returns {Promise<void>}
   */
  wait(seconds) {
    return new Promise((resolve) => {
      const before = this.wake;
      const timer = seconds === null ? undefined : setTimeout(resolve, seconds * 1000);
      const go = () => {
        clearTimeout(timer);
        resolve();
      };
      window.addEventListener("online", go, { once: true });
      this.wake = () => {
        before();
        go();
      };
    });
  }

  #rouse() {
    const wake = this.wake;
    this.wake = () => {};
    wake();
  }

  #abortFlights() {
    for (const { request } of [...this.flying.values()]) request.abort();
  }

  pause() {
    this.isPaused = true;
    this.#abortFlights();
    this.tell();
  }

  resume() {
    this.isPaused = false;
    this.samples = [];
    this.#rouse();
    this.tell();
  }

  halt() {
    this.cancelled = true;
    this.#abortFlights();
    this.#rouse();
  }

  /** Give up for good: nothing stays on the server. */
  async stop() {
    this.halt();
    forgetUpload(this.identity);
    const headers = { "X-CSRFToken": this.csrf };
    // Without a connection the server cleans up by itself, later.
    if (this.id) await fetch(`${this.api}${this.id}/`, { method: "DELETE", headers }).catch(() => null);
  }

  tell() {
    const now = performance.now() / 1000;
    this.samples.push([now, this.sent]);
    while (this.samples.length > 2 && now - this.samples[0][0] > SPEED_SECONDS) this.samples.shift();
    const [since, before] = this.samples[0];
    const speed = now - since > 1 ? (this.sent - before) / (now - since) : 0;
    const flying = [...this.flying.values()].reduce((sum, { loaded }) => sum + loaded, 0);
    const size = this.file.size;
    const loaded = Math.min(size, this.done + flying);
    const left = speed > 0 ? (size - loaded) / speed : null;
    this.onChange({ loaded, size, speed, left, note: this.isPaused ? "" : this.note, paused: this.isPaused });
  }
}
