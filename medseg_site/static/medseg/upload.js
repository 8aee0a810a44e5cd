// Drop zones, and forms that go to the API with a progress bar. Errors come back beside the fields they are about.
import { PartsUpload, Refused, Stopped, earlierUpload, endsAsZip, forgetUpload } from "./parts_upload.js";
import { zipOf } from "./zip.js";

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

/** A zone with one file input: files can be dropped on it; what is chosen is said in [data-chosen]. */
export function mountDrop(zone) {
  const input = zone.querySelector("input[type=file]");
  const chosen = zone.querySelector("[data-chosen]");
  const invitation = chosen.textContent;
  let depth = 0;
  const light = (change) => {
    depth += change;
    zone.classList.toggle("is-over", depth > 0);
  };

  function show() {
    const files = [...input.files];
    const size = files.reduce((sum, file) => sum + file.size, 0);
    const name = files.length === 1 ? files[0].name : `${files.length} files`;
    chosen.textContent = files.length ? `${name} (${humanSize(size)})` : invitation;
    zone.classList.toggle("has-file", files.length > 0);
    const wanted = input.form.querySelector("[data-name-from-file]");
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
    const files = [...event.dataTransfer.files];
    if (!files.length) return;
    const taken = new DataTransfer();
    for (const file of input.multiple ? files : files.slice(0, 1)) taken.items.add(file);
    input.files = taken.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
  input.addEventListener("change", show);
  show();
}

/** What the fields of a form send: an object for JSON, else FormData. Several images become one ZIP. */
async function bodyOf(form) {
  const data = new FormData(form);
  data.delete("csrfmiddlewaretoken");
  for (const [name, value] of [...data]) if (value instanceof File && !value.size && !value.name) data.delete(name);
  if (form.dataset.kind === "json") return JSON.stringify(Object.fromEntries(data));
  const several = form.querySelector("[data-zip]");
  if (several) {
    const files = [...several.files];
    const isArchive = files.length === 1 && /\.zip$/i.test(files[0].name);
    data.delete(several.name);
    data.set("archive", isArchive ? files[0] : await zipOf(files), isArchive ? files[0].name : "images.zip");
  }
  return data;
}

function problemBefore(form) {
  for (const input of form.querySelectorAll("input[type=file]")) {
    const label = input.dataset.label || "file";
    if (input.hasAttribute("data-required") && !input.files.length)
      return { attr: input.name, detail: `Choose ${label} first.` };
    const most = Number(input.dataset.maxBytes || 0);
    for (const file of input.files) {
      if (!file.size) return { attr: input.name, detail: `${file.name} is empty. Choose another file.` };
      if (most && file.size > most) {
        return {
          attr: input.name,
          detail: `${file.name} is ${humanSize(file.size)}. The limit is ${humanSize(most)}.`,
        };
      }
    }
  }
  for (const input of form.querySelectorAll("input[data-required]:not([type=file])")) {
    if (!input.value.trim()) return { attr: input.name, detail: input.dataset.required };
  }
  return null;
}

/** "43 % of 3.0 GB · 85.2 MB/s · about 20 s left", or why it does not go on. */
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

/** The same files chosen again have the same identity, also when they become a ZIP here. */
function identityOf(files, purpose) {
  const said = files.map((file) => `${file.name}|${file.size}|${file.lastModified}`);
  if (said.length === 1) return `${purpose}|${said[0]}`;
  let hash = 0;
  for (const char of said.join("\n")) hash = (Math.imul(hash, 31) + char.codePointAt(0)) | 0;
  return `${purpose}|${said.length}|${files.reduce((sum, file) => sum + file.size, 0)}|${hash}`;
}

/** A form that is sent to `data-api`; the page at `data-next` (with the new id for 0) follows. */
export function mountUpload(form) {
  const button = form.querySelector("[type=submit]");
  const stop = form.querySelector("[data-stop]");
  const box = form.querySelector("[data-progress]");
  const bar = box.querySelector("progress");
  const words = box.querySelector("[data-progress-text]");
  const problem = form.querySelector("[data-problem]");
  const pause = form.querySelector("[data-pause]");
  const earlier = form.querySelector("[data-earlier]");
  const { uploads, purpose } = form.dataset; // forms whose archives may come in parts have both
  let request = null;
  let parts = null;

  function clearProblems() {
    problem.hidden = true;
    for (const field of form.querySelectorAll(".is-invalid")) {
      field.classList.remove("is-invalid");
      field.removeAttribute("aria-invalid");
    }
    for (const text of form.querySelectorAll("[data-error-for]")) text.textContent = "";
  }

  function showProblems(errors) {
    const general = [];
    let first = null;
    for (const { attr, detail } of errors) {
      const place = attr && form.querySelector(`[data-error-for~="${CSS.escape(attr)}"]`);
      if (!place) {
        general.push(detail);
        continue;
      }
      place.textContent = detail;
      const field = form.elements[attr] || form.querySelector("[data-zip]");
      if (field instanceof Element) {
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

  /** Says of a file that is chosen whether a part of it is here already. */
  async function lookForEarlier(input) {
    earlier.hidden = true;
    const files = [...input.files];
    if (!files.length) return;
    const found = await earlierUpload(uploads, identityOf(files, purpose)).catch(() => null);
    if (!found) return;
    earlier.textContent = `An upload of this file was interrupted. ${Math.floor(found.share * 100)} % of it is here already; it goes on from there.`;
    earlier.hidden = false;
  }

  /** A large archive: in parts, then one request that makes a dataset or a batch of it. */
  async function sendInParts(body, file) {
    const input = form.querySelector("input[type=file]");
    const identity = identityOf([...input.files], purpose);
    const onChange = (state) => {
      bar.value = state.loaded / state.size;
      words.textContent = progressText(state);
      pause.textContent = state.paused ? "Resume" : "Pause";
    };
    const csrf = form.elements.csrfmiddlewaretoken.value;
    body.delete("archive");
    try {
      if (!(await endsAsZip(file)))
        throw new Refused([{ attr: "archive", detail: `${file.name} is not a ZIP file, or it is damaged.` }], 0);
      parts = new PartsUpload({ api: uploads, file, fileName: file.name, identity, purpose, csrf, onChange });
      earlier.hidden = true;
      pause.hidden = false;
      const upload = await parts.run();
      pause.hidden = true;
      bar.removeAttribute("value");
      words.textContent = "Sent. Being handed over …";
      const made = await parts.again(() =>
        parts.ask("POST", form.dataset.api, { ...Object.fromEntries(body), upload }),
      );
      forgetUpload(identity);
      parts = null;
      words.textContent = "Received. Opening its page …";
      window.location.assign(form.dataset.next.replace("/0/", `/${made.id}/`));
    } catch (error) {
      if (error instanceof Stopped) return fail([{ attr: null, detail: "Stopped. Nothing was kept." }]);
      fail(error instanceof Refused ? error.errors : [{ attr: null, detail: error.message }]);
    }
  }

  function fail(errors) {
    end();
    showProblems(errors);
  }

  function answered() {
    let answer = null;
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      answer = null;
    }
    if (request.status >= 200 && request.status < 300 && answer) {
      words.textContent = "Received. Opening its page …";
      window.location.assign(form.dataset.next.replace("/0/", `/${answer.id}/`));
      return;
    }
    const unknown = { attr: null, detail: `The server answered with status ${request.status}. Try again.` };
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
      return fail([{ attr: null, detail: error.message }]);
    }
    const archive = uploads && body.get("archive");
    if (archive && archive.size > Number(form.dataset.partsAbove)) return sendInParts(body, archive);
    const started = performance.now();
    request = new XMLHttpRequest();
    request.open("POST", form.dataset.api);
    request.setRequestHeader("X-CSRFToken", form.elements.csrfmiddlewaretoken.value);
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
    request.addEventListener("load", answered);
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
  stop?.addEventListener("click", () => (parts ? parts.stop() : request?.abort()));
  pause?.addEventListener("click", () => (parts?.isPaused ? parts.resume() : parts?.pause()));
  if (uploads) {
    const input = form.querySelector("input[type=file]");
    input.addEventListener("change", () => lookForEarlier(input));
  }
  window.addEventListener("beforeunload", (event) => {
    if (parts || (request && request.readyState < 4)) event.preventDefault();
  });
}
