// Sends one large file in parts: several at once, again after an error, and only what is missing after a break of any length.
// The parts go where the platform's signed addresses point: to S3, or to the platform itself.
const PARALLEL = 4;
const MOST_TRIES = 5; // of one part that is answered with an error; a lost connection is waited for without end
const LONGEST_WAIT = 30;
const SPEED_SECONDS = 10;
const MEMORY = "medseg-upload|";

/** What the server or the store will not take, with the server's own words. */
export class Refused extends Error {
  constructor(errors, status) {
    super(errors[0].detail);
    this.errors = errors;
    this.status = status;
  }
}

class Interrupted extends Error {}
class Paused extends Error {}
export class Stopped extends Error {}

const LOST = "No connection. Waiting for it; the upload goes on by itself.";
const LOST_STORE = "No connection to the file store at HOST. The upload goes on by itself once there is one.";
const BUSY = "The server cannot take it just now. The upload goes on by itself.";

async function errorsOf(answer) {
  const document = await answer.json().catch(() => null);
  return document?.errors || [{ attr: null, detail: `The server answered with status ${answer.status}. Try again.` }];
}

/** What this browser remembers of an unfinished upload of the same file, as the server sees it now; null when there is none. */
export async function earlierUpload(api, identity) {
  const id = localStorage.getItem(MEMORY + identity);
  if (!id) return null;
  const get = (path) => fetch(`${api}${id}/${path}`, { headers: { Accept: "application/json" } });
  const answer = await get("");
  if (answer.status === 404) forgetUpload(identity);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Refused(await errorsOf(answer), answer.status);
  const upload = await answer.json();
  if (["aborted", "used"].includes(upload.state)) return null;
  if (upload.state !== "open") return { ...upload, arrived: new Map(), share: 1 };
  const listed = await get("parts/");
  if (listed.status === 409) forgetUpload(identity); // its parts are gone
  if (listed.status === 409) return null;
  if (!listed.ok) throw new Refused(await errorsOf(listed), listed.status);
  const { parts } = await listed.json();
  const arrived = new Map(parts.map((part) => [part.PartNumber, part]));
  return { ...upload, arrived, share: parts.reduce((sum, part) => sum + part.Size, 0) / upload.size };
}

export function forgetUpload(identity) {
  localStorage.removeItem(MEMORY + identity);
}

/** True when the file ends as a ZIP does: known before gigabytes are sent. */
export async function endsAsZip(file) {
  const tail = new Uint8Array(await file.slice(Math.max(0, file.size - 65557)).arrayBuffer());
  for (let at = tail.length - 22; at >= 0; at--) {
    if (tail[at] === 0x50 && tail[at + 1] === 0x4b && tail[at + 2] === 5 && tail[at + 3] === 6) return true;
  }
  return false;
}

/** Where a page is not served over TLS, browsers have no digest: then the server alone computes checksums. */
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
  /** `identity` names the file in this browser's memory; `onChange(state)` is told {loaded, size, speed, left, note, paused}. */
  constructor({ api, file, fileName, identity, purpose, csrf, onChange }) {
    Object.assign(this, { api, file, fileName, identity, purpose, csrf, onChange });
    this.id = null;
    this.isPaused = false;
    this.note = "";
    this.done = 0; // bytes that are known to be there
    this.sent = 0; // bytes that went over the line, for the speed
    this.flying = new Map(); // part number → its request, and the bytes of it that are on their way
    this.samples = [];
    this.cancelled = false;
    this.wake = () => {};
  }

  /** Resolves with the upload's id when the file is whole on the server. Throws Refused or Stopped. */
  async run() {
    let upload = await this.again(() => this.#earlier());
    if (!upload) {
      const body = { file_name: this.fileName, size: this.file.size, purpose: this.purpose };
      upload = { ...(await this.again(() => this.ask("POST", this.api, body))), arrived: new Map() };
      localStorage.setItem(MEMORY + this.identity, upload.id);
    }
    this.id = upload.id;
    if (upload.state !== "open") return upload.id;
    this.upload = upload;
    const queue = Array.from({ length: upload.part_count }, (_, index) => index + 1);
    this.timer = setInterval(() => this.tell(), 500);
    try {
      await Promise.all(Array.from({ length: PARALLEL }, () => this.work(queue)));
      await this.again(() => this.ask("POST", `${this.api}${upload.id}/complete/`, {}));
    } catch (error) {
      this.halt(); // one part is refused: the others need not go on
      const isGone = error instanceof Refused && [404, 409].includes(error.status);
      if (isGone) forgetUpload(this.identity);
      const anew = "The server does not have the earlier parts any more. Press the button again to send the file anew.";
      throw isGone ? new Refused([{ attr: null, detail: anew }], error.status) : error;
    } finally {
      clearInterval(this.timer);
    }
    return upload.id;
  }

  async #earlier() {
    try {
      return await earlierUpload(this.api, this.identity);
    } catch (error) {
      throw error instanceof Refused ? error : new Interrupted(LOST);
    }
  }

  async work(queue) {
    for (let number = queue.shift(); number !== undefined; number = queue.shift()) {
      await this.again(() => this.sendPart(number));
    }
  }

  async sendPart(number) {
    const { id, part_size: size, arrived } = this.upload;
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

  put(number, url, blob) {
    this.check();
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not say how much has been sent
      const flight = { request, loaded: 0 };
      const end = (settle, value) => {
        this.flying.delete(number);
        settle(value);
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
        if (status >= 200 && status < 300) return end(resolve);
        const answer = new Response(request.responseText || null, { status: Math.max(200, status) });
        end(reject, new Refused(await errorsOf(answer), status));
      });
      const lost = url.origin === location.origin || !navigator.onLine ? LOST : LOST_STORE.replace("HOST", url.host);
      request.addEventListener("error", () => end(reject, new Interrupted(lost)));
      request.addEventListener("abort", () => end(reject, this.cancelled ? new Stopped() : new Paused()));
      this.flying.set(number, flight);
      request.send(blob);
    });
  }

  /** JSON from and to the platform. */
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

  /** Do something until it is done: waits for the connection, for a busy server, and while paused. */
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
        if (error instanceof Refused && !this.mayPass(error, (tries += 1))) throw error;
        if (!(error instanceof Refused || error instanceof Interrupted)) throw error;
        this.note = error instanceof Interrupted ? error.message : BUSY;
        this.tell();
        await this.wait(Math.min(LONGEST_WAIT, 2 ** round) * (0.75 + Math.random() / 2));
      }
    }
  }

  /** Whether an answer may be another one next time: a busy server, an address that has expired, a part that was damaged. */
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

  /** For so many seconds (null: until resumed), or until something has changed. */
  wait(seconds) {
    return new Promise((resolve) => {
      const before = this.wake;
      const timer = seconds === null ? null : setTimeout(resolve, seconds * 1000);
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
