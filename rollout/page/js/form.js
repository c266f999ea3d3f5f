// The request that the form describes, and where its errors are shown.

import { chosenOptions } from "./sampler_options.js";
import { partsOf, segmentsOf } from "./infill.js";
import { slotCount } from "./lane.js";

const $ = (id) => document.getElementById(id);

/** What each field of the API is on this page: the control, and the place of its error. */
const PLACES = {
  prompt: ["prompt", "prompt-error"],
  messages: ["prompt", "prompt-error"],
  segments: ["infill", "infill-error"],
  sampler: ["sampler", "sampler-error"],
  max_new_tokens: ["slots", "slots-error"],
  block_length: ["block", "slots-error"],
};

/** One request a sampler, with the parts of its canvas. Throws `{param, message}` for what the page can know itself. */
export function requestsOf(samplers) {
  const infill = mode() === "infill";
  const parts = infill ? partsOf($("infill").value) : [{ text: $("prompt").value }, { slots: whole("slots") ?? 0 }];
  if (infill) checkHoles(parts);
  else checkPrompt();
  const shared = {
    ...(infill ? { segments: segmentsOf(parts) } : { ...question(), num_samples: 1, max_new_tokens: whole("slots") }),
    ...optional("block_length", whole("block")),
    ...optional("steps", whole("steps")),
    ...optional("top_p", $("top-p").value === "" ? null : Number($("top-p").value)),
    ...optional("cache", $("cache").value || null),
    ...optional("model", $("model").value || null),
    temperature: Number($("temperature").value),
    seed: whole("seed") ?? 0,
  };
  return samplers.map((sampler) => ({
    path: infill ? "/v1/infill" : "/v1/rollouts",
    body: { ...shared, sampler: { name: sampler.name, options: chosenOptions($("options"), sampler.name) } },
    lane: {
      sampler: sampler.name,
      exact: sampler.exact_likelihood,
      parts,
      blockLength: whole("block"),
      prompt: infill ? "" : $("prompt").value,
    },
  }));
}

function checkHoles(parts) {
  const count = slotCount(parts);
  if (!count) fail("segments", "There is no hole. Select some of the text and make it a hole.");
  if (count > limit()) fail("segments", `The holes have ${count} slots together; this model takes up to ${limit()}.`);
}

function checkPrompt() {
  if (!$("prompt").value) fail("prompt", "Write a prompt, or choose an example.");
  const slots = whole("slots") ?? 0;
  if (slots < 1 || slots > limit()) fail("max_new_tokens", `Slots must be a whole number from 1 to ${limit()}.`);
}

function fail(param, message) {
  throw { param, message };
}

/** Slots that the model takes, as far as the server has told. */
function limit() {
  return Number($("slots").max) || 4096;
}

function question() {
  const text = $("prompt").value;
  return $("chat").checked ? { messages: [{ role: "user", content: text }] } : { prompt: text };
}

export function mode() {
  return document.querySelector("input[name=mode]:checked").value;
}

/** Shows an error at the field it is about, if that is on the page; true if so. */
export function showFieldError({ param, message }) {
  const root = String(param ?? "").split(/[.[]/)[0];
  const [control, place] = PLACES[root] ?? [];
  if (!control) return false;
  $(control).setAttribute("aria-invalid", "true");
  $(place).textContent = message;
  $(place).hidden = false;
  $(control).focus();
  return true;
}

export function clearFieldErrors() {
  for (const [control, place] of Object.values(PLACES)) {
    $(control).removeAttribute("aria-invalid");
    $(place).hidden = true;
  }
}

function whole(id) {
  const value = $(id).value;
  return value === "" ? null : Math.trunc(Number(value));
}

function optional(name, value) {
  return value === null ? {} : { [name]: value };
}
