// Encoders that the chosen architecture cannot use are shown, but cannot be chosen. (The server checks it again.)
export function mountTrainForm(form) {
  const allowed = JSON.parse(document.getElementById("encoders-by-architecture").textContent);
  const architecture = form.elements.architecture;
  const encoder = form.elements.encoder;

  function narrow() {
    const usable = allowed[architecture.value];
    for (const option of encoder.options) {
      const fits = !option.value || !usable || usable.includes(option.value);
      option.disabled = !fits;
      option.textContent = option.value && !fits ? `${option.value} (not with this architecture)` : option.value || option.textContent;
    }
    if (encoder.selectedOptions[0]?.disabled) encoder.value = "";
  }

  architecture.addEventListener("change", narrow);
  narrow();
}
