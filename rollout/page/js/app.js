// The page: what the form asks for is streamed into lanes, and the player shows them.

import { ApiError, getJson, setKey, stream } from "./api.js";
import { clearFieldErrors, mode, requestsOf, showFieldError } from "./form.js";
import { INFILL, PROMPTS, renderExamples } from "./examples.js";
import { holeFromSelection } from "./infill.js";
import { Lane, verdict } from "./lane.js";
import { LaneView } from "./lane_view.js";
import { Player } from "./player.js";
import { connectPlayer } from "./player_controls.js";
import { renderOptions } from "./sampler_options.js";
import { connectTheme } from "./theme.js";

const $ = (id) => document.getElementById(id);
const player = new Player();
let samplers = [];
let models = [];
let views = [];
let abort = null;

function chosen() {
  const names = [$("sampler").value, $("rival").value].filter(Boolean);
  return names.map((name) => samplers.find((sampler) => sampler.name === name)).filter(Boolean);
}

function announce(text) {
  $("announcer").textContent = text;
}

function lay(requests) {
  views = requests.map(({ lane }) => new LaneView(new Lane(lane)));
  $("lanes").replaceChildren(...views.map((view) => view.element));
  tell(views.length > 1 ? "The same seed and the same slots; time is counted in forwards." : "");
}

function tell(text, isFinal = false) {
  $("verdict").textContent = text;
  $("verdict").classList.toggle("is-final", isFinal);
}

/** The empty canvas of what would be asked for. */
function preview() {
  if (abort) return;
  try {
    lay(requestsOf(chosen()));
    player.start(1);
    player.close();
    player.extend(0);
  } catch (problem) {
    if (problem instanceof Error) throw problem;
  }
}

async function run() {
  abort?.abort();
  clearFieldErrors();
  $("error").hidden = true;
  let requests;
  try {
    requests = requestsOf(chosen());
  } catch (problem) {
    if (problem instanceof Error) throw problem;
    showFieldError(problem);
    return;
  }
  const own = (abort = new AbortController());
  lay(requests);
  busy(true);
  if (!isInView($("stage"))) $("stage").scrollIntoView({ behavior: player.still.matches ? "auto" : "smooth" });
  player.start(Math.max(...views.map((view) => view.lane.numSlots)));
  announce(`Denoising with ${views.map((view) => view.lane.sampler).join(" and ")}.`);
  const outcomes = await Promise.allSettled(requests.map((request, place) => follow(request, views[place], own.signal)));
  if (own !== abort) return;
  abort = null;
  player.close();
  busy(false);
  conclude(outcomes);
}

async function follow({ path, body }, view, signal) {
  const { lane } = view;
  try {
    for await (const { event, data } of stream(path, body, signal)) {
      if (event === "step") lane.addStep(data);
      else if (event === "done") lane.finish(data);
      else continue;
      view.update();
      player.extend(Math.max(...views.map((other) => other.lane.numForwards)));
    }
  } catch (error) {
    lane.status = "stopped";
    view.update();
    throw error;
  }
}

function conclude(outcomes) {
  const errors = outcomes.filter((outcome) => outcome.status === "rejected").map((outcome) => outcome.reason);
  const unexpected = errors.find((error) => error.name !== "AbortError");
  if (unexpected) {
    showError(unexpected);
    return;
  }
  if (errors.length) {
    announce("Stopped.");
    return;
  }
  const lanes = views.map((view) => view.lane);
  if (lanes.length === 2) tell(verdict(...lanes), true);
  const told = lanes.map((lane) => `${lane.sampler}: ${lane.text}, ${lane.numCommitted} tokens in ${lane.numForwards} forwards.`);
  announce(`Done. ${told.join(" ")} ${$("verdict").textContent}`);
}

function showError(error) {
  const known = error instanceof ApiError;
  if (known && error.status === 401) {
    $("key-box").open = true;
    $("key").focus();
  }
  if (known && showFieldError(error)) return;
  const title = document.createElement("strong");
  title.textContent = known && error.status === 429 ? "The server is busy" : "This did not work";
  const text = document.createElement("p");
  text.textContent = error.message + (error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "");
  $("error").replaceChildren(title, text);
  $("error").hidden = false;
}

function busy(isBusy) {
  $("stop").hidden = !isBusy;
  $("run").textContent = isBusy ? "Again" : "Denoise";
  $("stage").setAttribute("aria-busy", String(isBusy));
}

function isInView(element) {
  return element.getBoundingClientRect().top < innerHeight * 0.6;
}

function describeSamplers() {
  const [first] = chosen();
  $("sampler-hint").textContent = first?.description ?? "";
  renderOptions($("options"), chosen());
  preview();
}

async function load() {
  try {
    const [served, list] = await Promise.all([getJson("/v1/models"), getJson("/v1/samplers")]);
    models = served.data;
    samplers = list.data;
    const names = samplers.map((sampler) => sampler.name);
    $("sampler").replaceChildren(...names.map((name) => new Option(name, name)));
    $("rival").replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name, name)));
    if (names.includes("confidence")) $("sampler").value = "confidence";
    $("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    $("model-field").hidden = models.length < 2;
    $("model-name").textContent = models.length === 1 ? models[0].id : "";
    fitModel();
    $("error").hidden = true;
    describeSamplers();
  } catch (error) {
    showError(error);
  }
}

/** What the chosen model can do; of one that is not loaded yet the server does not know. */
function fitModel() {
  const model = models.find(({ id }) => id === $("model").value);
  const infill = document.querySelector("input[name=mode][value=infill]");
  infill.disabled = model?.can_infill === false;
  infill.parentElement.title = infill.disabled ? "This model cannot fill holes" : "";
  if (infill.disabled && infill.checked) document.querySelector("input[name=mode][value=answer]").click();
  if (model?.max_length) $("slots").max = Math.min(model.max_new_tokens, model.max_length);
}

function choose(example) {
  $("prompt").value = example.prompt;
  $("slots").value = example.slots;
  for (const button of $("examples").children) {
    button.setAttribute("aria-pressed", String(button.textContent === example.name));
  }
  clearFieldErrors();
  preview();
}

function connect() {
  connectTheme($("theme"));
  connectPlayer(player, () => views, () => abort?.abort());
  renderExamples($("examples"), choose);
  $("infill").value = INFILL;
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("composer").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  $("stop").addEventListener("click", () => abort?.abort());
  $("sampler").addEventListener("change", describeSamplers);
  $("rival").addEventListener("change", describeSamplers);
  $("model").addEventListener("change", fitModel);
  for (const id of ["prompt", "infill", "slots", "block"]) {
    $(id).addEventListener("input", () => {
      clearFieldErrors();
      preview();
    });
  }
  const showTemperature = () => ($("temperature-value").value = Number($("temperature").value).toFixed(2));
  $("temperature").addEventListener("input", showTemperature);
  showTemperature();
  $("new-seed").addEventListener("click", () => ($("seed").value = crypto.getRandomValues(new Uint16Array(1))[0]));
  $("make-hole").addEventListener("click", () => announce(holeFromSelection($("infill"), 1)));
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", changeMode);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey($("key").value);
    $("key-box").open = false;
    load();
  });
}

function changeMode() {
  for (const field of document.querySelectorAll("[data-mode]")) field.hidden = field.dataset.mode !== mode();
  clearFieldErrors();
  preview();
}

connect();
choose(PROMPTS[0]);
load();
