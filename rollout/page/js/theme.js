// Light, dark, or as the system: kept for the next visit where the browser allows it.

const NAMES = ["auto", "light", "dark"];
const LABELS = { auto: ["Auto", "as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };

export function connectTheme(button) {
  let name = stored() ?? "auto";
  const apply = () => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.textContent = LABELS[name][0];
    button.setAttribute("aria-label", `Colours: ${LABELS[name][1]}`);
  };
  button.addEventListener("click", () => {
    name = NAMES[(NAMES.indexOf(name) + 1) % NAMES.length];
    store(name);
    apply();
  });
  apply();
}

function stored() {
  try {
    const name = localStorage.getItem("theme");
    return NAMES.includes(name) ? name : null;
  } catch {
    return null;
  }
}

function store(name) {
  try {
    localStorage.setItem("theme", name);
  } catch {
    // Storage is off: the choice lasts as long as the page.
  }
}
