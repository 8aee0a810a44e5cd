// Drop zones, and forms that go to the API with a progress bar. Errors come back beside the fields they are about.

import { earlierUpload, forgetUpload } from "./earlier_upload.js";
import { attribute, find, messageOf } from "./page.js";
import { PartsUpload, Stopped } from "./parts_upload.js";
import { Refused } from "./refused.js";
import { endsAsZip, zipOf } from "./zip.js";

/** @import { Progress } from "./parts_upload.js" */
/** @import { Problem } from "./refused.js" */

/** @param {number} bytes */
export function humanSize(bytes) {
  const units = ["bytes", "KB", "MB", "GB"];
  let size = bytes;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit && size < 100 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

/**
 * The files that are chosen in a file input.
 * @param {HTMLInputElement} input
 */
function filesOf(input) {
  return [...(input.files ?? [])];
}

/**
 * A zone with one file input: files can be dropped on it; what is chosen is said in [data-chosen].
 * @param {HTMLElement} zone
 */
export function mountDrop(zone) {
  const input = find(zone, "input[type=file]", HTMLInputElement);
  const chosen = find(zone, "[data-chosen]", HTMLElement);
  const invitation = chosen.textContent;
  let depth = 0;
  /** @param {number} change */
  const light = (change) => {
    depth += change;
    zone.classList.toggle("is-over", depth > 0);
  };

  function show() {
    const files = filesOf(input);
    const size = files.reduce((sum, file) => sum + file.size, 0);
    const name = files.length === 1 ? files[0].name : `${files.length} files`;
    chosen.textContent = files.length ? `${name} (${humanSize(size)})` : invitation;
    zone.classList.toggle("has-file", files.length > 0);
    /** @type {HTMLInputElement | null | undefined} */
    const wanted = input.form?.querySelector("[data-name-from-file]");
    if (files.length === 1 && wanted && !wanted.value)
      wanted.value = files[0].name.replace(/\.zip$/i, "").replaceAll("_", " ");
  }

  zone.addEventListener("dragenter", (event) => {
    event.preventDefault();
    light(1);
  });
  zone.addEventListener("dragleave", () => light(-1));
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    light(-depth);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    const taken = new DataTransfer();
    for (const file of input.multiple ? files : files.slice(0, 1)) taken.items.add(file);
    input.files = taken.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
  input.addEventListener("change", show);
  show();
}

/**
 * What the fields of a form send: the text of a JSON object, else FormData. Several images become one ZIP.
 * @param {HTMLFormElement} form
 */
async function bodyOf(form) {
  const data = new FormData(form);
  data.delete("csrfmiddlewaretoken");
  for (const [name, value] of [...data]) if (value instanceof File && !value.size && !value.name) data.delete(name);
  if (form.dataset.kind === "json") return JSON.stringify(Object.fromEntries(data));
  if (form.querySelector("[data-zip]")) {
    const several = find(form, "[data-zip]", HTMLInputElement);
    const files = filesOf(several);
    const isArchive = files.length === 1 && /\.zip$/i.test(files[0].name);
    data.delete(several.name);
    data.set("archive", isArchive ? files[0] : await zipOf(files), isArchive ? files[0].name : "images.zip");
  }
  return data;
}

/**
 * What is wrong with a form that has not been sent.
 * @param {HTMLFormElement} form
 * @returns {Problem | null}
 */
function problemBefore(form) {
  /** @type {NodeListOf<HTMLInputElement>} */
  const fileInputs = form.querySelectorAll("input[type=file]");
  for (const input of fileInputs) {
    const files = filesOf(input);
    const label = input.dataset.label || "file";
    if (input.hasAttribute("data-required") && !files.length)
      return { attr: input.name, detail: `Choose ${label} first.` };
    const most = Number(input.dataset.maxBytes || 0);
    for (const file of files) {
      if (!file.size) return { attr: input.name, detail: `${file.name} is empty. Choose another file.` };
      if (most && file.size > most) {
        return {
          attr: input.name,
          detail: `${file.name} is ${humanSize(file.size)}. The limit is ${humanSize(most)}.`,
        };
      }
    }
  }
  /** @type {NodeListOf<HTMLInputElement>} */
  const inputs = form.querySelectorAll("input[data-required]:not([type=file])");
  for (const input of inputs) {
    if (!input.value.trim()) return { attr: input.name, detail: attribute(input, "data-required") };
  }
  return null;
}

/**
 * "43 % of 3.0 GB · 85.2 MB/s · about 20 s left", or why it does not go on.
 * @param {Progress} progress
 */
function progressText({ loaded, size, speed, left, note, paused }) {
  const share = `${Math.floor((loaded / size) * 100)} % of ${humanSize(size)}`;
  if (paused) return `${share}. Paused.`;
  if (note) return `${share}. ${note}`;
  const rest =
    left === null || left < 3
      ? ""
      : left < 120
        ? `about ${Math.ceil(left)} s left`
        : `about ${Math.ceil(left / 60)} min left`;
  return [share, speed ? `${humanSize(speed)}/s` : "", rest].filter(Boolean).join(" · ");
}

/**
 * The same files chosen again have the same identity, also when they become a ZIP here.
 * @param {File[]} files
 * @param {string} purpose
 */
function identityOf(files, purpose) {
  const said = files.map((file) => `${file.name}|${file.size}|${file.lastModified}`);
  if (said.length === 1) return `${purpose}|${said[0]}`;
  let hash = 0;
  for (const char of said.join("\n")) hash = (Math.imul(hash, 31) + (char.codePointAt(0) ?? 0)) | 0;
  return `${purpose}|${said.length}|${files.reduce((sum, file) => sum + file.size, 0)}|${hash}`;
}

/**
 * A form that is sent to `data-api`; the page at `data-next` (with the new id for 0) follows.
 * @param {HTMLFormElement} form
 */
export function mountUpload(form) {
  const button = find(form, "[type=submit]", HTMLButtonElement);
  const stop = find(form, "[data-stop]", HTMLElement);
  const box = find(form, "[data-progress]", HTMLElement);
  const bar = find(box, "progress", HTMLProgressElement);
  const words = find(box, "[data-progress-text]", HTMLElement);
  const problem = find(form, "[data-problem]", HTMLElement);
  const pause = find(form, "[data-pause]", HTMLElement);
  const earlier = find(form, "[data-earlier]", HTMLElement);
  const api = attribute(form, "data-api");
  const next = attribute(form, "data-next");
  const csrf = find(form, "[name=csrfmiddlewaretoken]", HTMLInputElement).value;
  const { uploads = "", purpose = "" } = form.dataset; // forms whose archives may come in parts have both
  /** @type {XMLHttpRequest | null} */
  let request = null;
  /** @type {PartsUpload | null} */
  let parts = null;

  function clearProblems() {
    problem.hidden = true;
    for (const field of form.querySelectorAll(".is-invalid")) {
      field.classList.remove("is-invalid");
      field.removeAttribute("aria-invalid");
    }
    for (const text of form.querySelectorAll("[data-error-for]")) text.textContent = "";
  }

  /** @param {Problem[]} errors */
  function showProblems(errors) {
    const general = [];
    /** @type {HTMLElement | null} */
    let first = null;
    for (const { attr, detail } of errors) {
      const place = attr && form.querySelector(`[data-error-for~="${CSS.escape(attr)}"]`);
      if (!place) {
        general.push(detail);
        continue;
      }
      place.textContent = detail;
      const field = form.elements.namedItem(attr) || form.querySelector("[data-zip]");
      if (field instanceof HTMLElement) {
        field.classList.add("is-invalid");
        field.setAttribute("aria-invalid", "true");
        first ||= field;
      }
    }
    problem.textContent = general.join(" ");
    problem.hidden = !general.length;
    (first || problem).focus();
  }

  function end() {
    request = parts = null;
    button.disabled = false;
    box.hidden = pause.hidden = true;
  }

  /**
   * Says of a file that is chosen whether a part of it is here already.
   * @param {HTMLInputElement} input
   */
  async function lookForEarlier(input) {
    earlier.hidden = true;
    const files = filesOf(input);
    if (!files.length) return;
    const found = await earlierUpload(uploads, identityOf(files, purpose)).catch(() => null);
    if (!found) return;
    earlier.textContent = `An upload of this file was interrupted. ${Math.floor(found.share * 100)} % of it is here already; it goes on from there.`;
    earlier.hidden = false;
  }

  /** @param {number | string} id */
  function openPage(id) {
    words.textContent = "Received. Opening its page …";
    window.location.assign(next.replace("/0/", `/${id}/`));
  }

  /**
   * A large archive: in parts, then one request that makes a dataset or a batch of it.
   * @param {FormData} body
   * @param {File} file
   */
  async function sendInParts(body, file) {
    const identity = identityOf(filesOf(find(form, "input[type=file]", HTMLInputElement)), purpose);
    /** @param {Progress} state */
    const onChange = (state) => {
      bar.value = state.loaded / state.size;
      words.textContent = progressText(state);
      pause.textContent = state.paused ? "Resume" : "Pause";
    };
    body.delete("archive");
    try {
      if (!(await endsAsZip(file)))
        throw new Refused([{ attr: "archive", detail: `${file.name} is not a ZIP file, or it is damaged.` }], 0);
      const sending = new PartsUpload({ api: uploads, file, fileName: file.name, identity, purpose, csrf, onChange });
      parts = sending;
      earlier.hidden = true;
      pause.hidden = false;
      const upload = await sending.run();
      pause.hidden = true;
      bar.removeAttribute("value");
      words.textContent = "Sent. Being handed over …";
      const made = await sending.again(() => sending.ask("POST", api, { ...Object.fromEntries(body), upload }));
      forgetUpload(identity);
      parts = null;
      openPage(made.id);
    } catch (error) {
      if (error instanceof Stopped) return fail([{ attr: null, detail: "Stopped. Nothing was kept." }]);
      fail(error instanceof Refused ? error.errors : [{ attr: null, detail: messageOf(error) }]);
    }
  }

  /** @param {Problem[]} errors */
  function fail(errors) {
    end();
    showProblems(errors);
  }

  /** @param {XMLHttpRequest} request */
  function answered({ status, responseText }) {
    let answer = null;
    try {
      answer = JSON.parse(responseText);
    } catch {
      answer = null;
    }
    if (status >= 200 && status < 300 && answer) return openPage(answer.id);
    const unknown = { attr: null, detail: `The server answered with status ${status}. Try again.` };
    fail(answer?.errors || [unknown]);
  }

  async function send() {
    clearProblems();
    const early = problemBefore(form);
    if (early) return showProblems([early]);
    button.disabled = true;
    box.hidden = false;
    bar.removeAttribute("value");
    words.textContent = "Preparing …";
    let body = null;
    try {
      body = await bodyOf(form);
    } catch (error) {
      return fail([{ attr: null, detail: messageOf(error) }]);
    }
    if (uploads && body instanceof FormData) {
      const archive = body.get("archive");
      if (archive instanceof File && archive.size > Number(form.dataset.partsAbove)) return sendInParts(body, archive);
    }
    const started = performance.now();
    const sending = new XMLHttpRequest();
    request = sending;
    request.open("POST", api);
    request.setRequestHeader("X-CSRFToken", csrf);
    request.setRequestHeader("Accept", "application/json");
    if (form.dataset.kind === "json") request.setRequestHeader("Content-Type", "application/json");
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      const share = event.loaded / event.total;
      const left = ((performance.now() - started) / 1000) * (1 / Math.max(share, 0.001) - 1);
      bar.value = share;
      const rest = share < 1 && left > 3 ? `, about ${Math.ceil(left)} s left` : "";
      words.textContent = `${Math.floor(share * 100)} % of ${humanSize(event.total)}${rest}`;
    });
    request.upload.addEventListener("load", () => {
      bar.removeAttribute("value");
      words.textContent = "Sent. Being stored …";
    });
    request.addEventListener("load", () => answered(sending));
    request.addEventListener("error", () =>
      fail([{ attr: null, detail: "The connection broke. Check that the platform runs, then try again." }]),
    );
    request.addEventListener("abort", () => fail([{ attr: null, detail: "Stopped. Nothing was kept." }]));
    request.send(body);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!request && !parts) send();
  });
  stop.addEventListener("click", () => (parts ? parts.stop() : request?.abort()));
  pause.addEventListener("click", () => (parts?.isPaused ? parts.resume() : parts?.pause()));
  if (uploads) {
    const input = find(form, "input[type=file]", HTMLInputElement);
    input.addEventListener("change", () => lookForEarlier(input));
  }
  window.addEventListener("beforeunload", (event) => {
    if (parts || (request && request.readyState < 4)) event.preventDefault();
  });
}
