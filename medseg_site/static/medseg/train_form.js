// Keeps choices together that go together, and puts what is wrong with the plan beside its field. (The server checks it again.)
const NOT_HERE = " (does not fit)";

export function mountTrainForm(form) {
  const { architectures, dimensions } = JSON.parse(document.getElementById("train-choices").textContent);
  const { architecture, configuration, dataset, encoder } = form.elements;
  const names = new Map(
    [architecture, configuration, encoder].flatMap((field) =>
      [...field.options].map((option) => [option, option.textContent]),
    ),
  );

  /** What does not fit is shown, but cannot be chosen; a choice that no longer fits is taken back. */
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
    const source = form.querySelector("#plan-errors");
    if (!source) return;
    const errors = JSON.parse(source.textContent);
    for (const field of form.querySelectorAll("#advanced [name]")) {
      const text = errors[field.name] || "";
      const note = document.getElementById(`${field.id}_error`) || addNote(field);
      note.textContent = text;
      note.classList.toggle("d-block", Boolean(text));
      field.classList.toggle("is-invalid", Boolean(text));
      field.toggleAttribute("aria-invalid", Boolean(text));
      if (text)
        for (let group = field.closest("details"); group; group = group.parentElement.closest("details"))
          group.open = true;
    }
  }

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
    const link = event.target.closest("[data-field]");
    if (!link) return;
    event.preventDefault();
    form.elements[link.dataset.field]?.focus();
  });
  narrowAll();
}
