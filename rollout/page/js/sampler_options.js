// The options of the chosen samplers as fields, made from what the server lists; only what was changed is sent.

export function renderOptions(container, samplers) {
  const kept = new Map([...container.querySelectorAll("[data-option]")].map((field) => [field.id, field.value]));
  container.replaceChildren(...samplers.filter((s) => Object.keys(s.options).length).map((s) => group(s, kept)));
}

/** Options that differ from their defaults, as the server wants them. */
export function chosenOptions(container, name) {
  const chosen = {};
  for (const field of container.querySelectorAll(`[data-sampler="${CSS.escape(name)}"]`)) {
    if (field.value.trim() !== "") chosen[field.dataset.option] = parsed(field.value.trim());
  }
  return chosen;
}

function group(sampler, kept) {
  const box = document.createElement("div");
  box.className = "option-group";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `Options of ${sampler.name}`);
  const title = document.createElement("h3");
  title.textContent = `Options of ${sampler.name}`;
  const grid = document.createElement("div");
  grid.className = "option-grid";
  grid.append(...Object.entries(sampler.options).map(([name, option]) => field(sampler.name, name, option, kept)));
  box.append(title, grid);
  return box;
}

function field(sampler, name, option, kept) {
  const standard = option !== null && typeof option === "object" && "default" in option ? option.default : option;
  const box = document.createElement("div");
  box.className = "field";
  const label = document.createElement("label");
  const input = typeof standard === "boolean" ? choice(["", "true", "false"], standard) : document.createElement("input");
  input.id = `option-${sampler}-${name}`;
  input.dataset.sampler = sampler;
  input.dataset.option = name;
  if (input instanceof HTMLInputElement) {
    input.placeholder = standard === null ? "off" : String(standard);
    input.spellcheck = false;
    input.autocomplete = "off";
  }
  input.value = kept.get(input.id) ?? "";
  label.htmlFor = input.id;
  label.textContent = name;
  box.append(label, input);
  return box;
}

function choice(values, standard) {
  const select = document.createElement("select");
  for (const value of values) select.add(new Option(value || `${standard} (default)`, value));
  return select;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
