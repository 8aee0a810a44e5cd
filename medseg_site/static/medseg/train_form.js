// Keeps choices together that go together, and puts what is wrong with the plan beside its field. (The server checks it again.)
import { attribute, find, readJson } from "./page.js";

const NOT_HERE = " (does not fit)";

/**
 * @typedef {object} Choices
 * @property {Record<string, { dimensions: number, encoders: string[] }>} architectures
 * @property {Record<string, number>} dimensions  of each dataset
 */

/** @param {HTMLFormElement} form */
export function mountTrainForm(form) {
  /** @type {Choices} */
  const { architectures, dimensions } = readJson("train-choices");
  const [architecture, configuration, dataset, encoder] = ["architecture", "configuration", "dataset", "encoder"].map(
    (name) => find(form, `[name=${name}]`, HTMLSelectElement),
  );
  const names = new Map(
    [architecture, configuration, encoder].flatMap((field) =>
      [...field.options].map((option) => [option, option.textContent]),
    ),
  );

  /**
   * What does not fit is shown, but cannot be chosen; a choice that no longer fits is taken back.
   * @param {HTMLSelectElement} field
   * @param {(value: string) => boolean} fits
   */
  function narrow(field, fits) {
    for (const option of field.options) {
      option.disabled = Boolean(option.value) && !fits(option.value);
      option.textContent = names.get(option) + (option.disabled ? NOT_HERE : "");
    }
    if (field.selectedOptions[0]?.disabled) field.value = "";
  }

  function narrowAll() {
    const isFlat = dimensions[dataset.value] === 2;
    narrow(configuration, (value) => !isFlat || value === "2d");
    const wanted = configuration.value ? (configuration.value === "3d" ? 3 : 2) : isFlat ? 2 : null;
    narrow(architecture, (value) => !wanted || architectures[value].dimensions === wanted);
    const chosen = architecture.value ? [architecture.value] : Object.keys(architectures);
    const possible = new Set(
      chosen
        .filter((name) => !wanted || architectures[name].dimensions === wanted)
        .flatMap((name) => architectures[name].encoders),
    );
    narrow(encoder, (value) => possible.has(value));
  }

  function showErrors() {
    if (!form.querySelector("#plan-errors")) return;
    /** @type {Record<string, string>} */
    const errors = readJson("plan-errors");
    /** @type {NodeListOf<HTMLInputElement | HTMLSelectElement>} */
    const fields = form.querySelectorAll("#advanced [name]");
    for (const field of fields) {
      const text = errors[field.name] || "";
      const note = document.getElementById(`${field.id}_error`) || addNote(field);
      note.textContent = text;
      note.classList.toggle("d-block", Boolean(text));
      field.classList.toggle("is-invalid", Boolean(text));
      field.toggleAttribute("aria-invalid", Boolean(text));
      if (text)
        for (let group = field.closest("details"); group; group = group.parentElement?.closest("details") ?? null)
          group.open = true;
    }
  }

  /** @param {HTMLElement} field */
  function addNote(field) {
    const note = document.createElement("div");
    note.className = "invalid-feedback";
    note.id = `${field.id}_error`;
    field.after(note);
    return note;
  }

  form.addEventListener("change", narrowAll);
  form.addEventListener("htmx:afterSwap", showErrors);
  form.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("[data-field]") : null;
    if (!link) return;
    event.preventDefault();
    const field = form.elements.namedItem(attribute(link, "data-field"));
    if (field instanceof HTMLElement) field.focus();
  });
  narrowAll();
}
