// Starts the page's modules, also in what htmx brings later, and keeps live parts from disturbing who reads.
import { mountCurves } from "./curves.js";
import { attribute, find } from "./page.js";
import { mountReliability } from "./reliability.js";
import { mountTrainForm } from "./train_form.js";
import { mountDrop, mountUpload } from "./upload.js";
import { mountViewer } from "./viewer.js";

/** @type {Record<string, (element: any) => void>} Each module says itself what element it wants. */
const MODULES = {
  curves: mountCurves,
  drop: mountDrop,
  reliability: mountReliability,
  "train-form": mountTrainForm,
  upload: mountUpload,
  viewer: mountViewer,
};

const mounted = new WeakSet();

/** @param {Node} root */
function mountAll(root) {
  if (!(root instanceof Element || root instanceof Document)) return;
  const found = [...root.querySelectorAll("[data-module]")];
  if (root instanceof Element && root.matches("[data-module]")) found.unshift(root);
  for (const element of found) {
    if (mounted.has(element)) continue;
    mounted.add(element);
    // Not `element.dataset.module`: a form that has a field called "dataset" hides that property.
    MODULES[attribute(element, "data-module")](element);
  }
}

/** @param {{ text: string, kind: string }} detail */
function showToast({ text, kind }) {
  const toast = document.createElement("div");
  toast.className = "toast show";
  toast.dataset.kind = kind;
  toast.setAttribute("role", "status");
  const body = document.createElement("div");
  body.className = "toast-body d-flex align-items-center gap-2";
  const words = document.createElement("span");
  words.className = "flex-fill text-break";
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "btn-close";
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => toast.remove());
  body.append(words, close);
  toast.append(body);
  find(document, "#toasts", HTMLElement).append(toast);
  setTimeout(() => toast.remove(), 12000);
}

/** @param {Event} event */
function pictureIsMissing(event) {
  const image = event.target;
  if (!(image instanceof HTMLImageElement) || !image.dataset.fallback) return;
  const note = document.createElement("div");
  note.className = "picture-missing text-secondary small";
  note.textContent = image.dataset.fallback;
  image.replaceWith(note);
}

document.addEventListener("error", pictureIsMissing, true);
document.body.addEventListener("medseg:toast", (event) => showToast(event.detail));
// A page that is about to be replaced under an open dialog waits for the next round.
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target?.id === "content" && document.querySelector(".modal.show")) event.detail.shouldSwap = false;
});
const offline = find(document, "#offline", HTMLElement);
document.body.addEventListener("htmx:sendError", () => {
  offline.hidden = false;
});
document.body.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) offline.hidden = true;
});
htmx.onLoad(mountAll);
mountAll(document);
