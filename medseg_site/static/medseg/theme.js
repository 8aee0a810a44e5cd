// Follows the system's light or dark theme. Loaded before the style sheets, so that no page flashes in the wrong one.
const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => document.documentElement.setAttribute("data-bs-theme", wantsDark.matches ? "dark" : "light");
applyTheme();
wantsDark.addEventListener("change", applyTheme);
