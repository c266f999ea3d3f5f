// Three charts over one axis of slots: when each was committed, how probable its token was, how open the choice was.

import { visible } from "./canvas.js";

const LEFT = 40;
const RIGHT = 6;
const ORDER = { top: 22, height: 128 };
const PROBABILITY = { top: 186, height: 44 };
const ENTROPY = { top: 266, height: 44 };
const HEIGHT = 334;
const SVG = "http://www.w3.org/2000/svg";

export class Charts {
  constructor(element, lane) {
    Object.assign(this, { element, lane });
    this.svg = node("svg", { role: "img", height: HEIGHT });
    element.replaceChildren(this.svg);
    new ResizeObserver(() => this.draw()).observe(element);
  }

  /** Draws everything anew: the lane has changed, or the room for it. */
  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const lane = this.lane;
    const band = (width - LEFT - RIGHT) / lane.numSlots;
    const last = Math.max(1, (lane.status === "done" ? lane.numSteps : Math.max(lane.numSteps, lane.numSlots)) - 1);
    const top = Math.max(1, ...lane.commits.map((commit) => commit.entropy ?? 0));
    const scale = {
      x: (slot) => LEFT + slot * band,
      step: (step) => ORDER.top + 6 + (step * (ORDER.height - 12)) / last,
      probability: (value) => PROBABILITY.top + PROBABILITY.height * (1 - value),
      entropy: (value) => ENTROPY.top + ENTROPY.height * (1 - value / top),
      mark: Math.min(14, Math.max(2, band - 2)),
      thick: Math.min(8, Math.max(2, (ORDER.height - 12) / last - 1)),
      band,
    };
    this.svg.replaceChildren(...frame(lane, scale, width, last, top), ...this.#columns(scale));
    this.scale = scale;
    this.svg.setAttribute("aria-label", describe(lane));
    this.show(this.forward ?? Infinity);
  }

  /** Marks what stands after `forward` forwards. */
  show(forward) {
    this.forward = forward;
    const standing = this.lane.until(forward);
    const slots = new Set(standing.map((commit) => commit.slot));
    for (const column of this.svg.querySelectorAll(".column")) {
      column.classList.toggle("later", !slots.has(Number(column.dataset.slot)));
    }
    const now = this.svg.querySelector(".now");
    if (now && this.scale) {
      const step = standing.at(-1)?.step;
      now.setAttribute("visibility", step === undefined || forward >= this.lane.numForwards ? "hidden" : "visible");
      if (step !== undefined) now.setAttribute("transform", `translate(0 ${this.scale.step(step)})`);
    }
  }

  #columns(scale) {
    return this.lane.commits.map((commit) => column(this.lane, commit, scale));
  }
}

function column(lane, commit, scale) {
  const group = node("g", { class: "column", "data-slot": commit.slot });
  const x = scale.x(commit.slot);
  const inset = (scale.band - scale.mark) / 2;
  const mark = (y, height, kind = "mark") => {
    const rect = node("rect", { class: `${kind} hue`, x: x + inset, y, width: scale.mark, height, rx: Math.min(2, height / 2) });
    rect.style.setProperty("--t", lane.share(commit));
    rect.style.setProperty("--p", commit.probability);
    return rect;
  };
  const likely = scale.probability(commit.probability);
  group.append(
    node("rect", { class: "hit", x, y: ORDER.top, width: scale.band, height: HEIGHT - ORDER.top - 18 }),
    mark(scale.step(commit.step) - scale.thick / 2, scale.thick),
    mark(likely, PROBABILITY.top + PROBABILITY.height - likely, "mark stem"),
    mark(likely - 1.5, 3),
  );
  if (commit.entropy !== null) {
    const y = scale.entropy(commit.entropy);
    group.append(mark(Math.min(y, ENTROPY.top + ENTROPY.height - 1), Math.max(1, ENTROPY.top + ENTROPY.height - y)));
  }
  if (scale.band >= 11) {
    const shown = visible(commit.token);
    if (shown.length * 7 <= scale.band + 2) {
      group.append(label(shown, x + scale.band / 2, HEIGHT - 6, { class: "token", "text-anchor": "middle" }));
    }
  }
  return group;
}

function frame(lane, scale, width, last, top) {
  const parts = [
    label("Order: step of each slot", 0, 12, { class: "title" }),
    label("Probability of the token", 0, PROBABILITY.top - 12, { class: "title" }),
    label("Entropy of the prediction, nats", 0, ENTROPY.top - 12, { class: "title" }),
    axis("0", scale.step(0), width),
    axis(String(last), scale.step(last), width),
    axis("1", PROBABILITY.top, width),
    axis("0", PROBABILITY.top + PROBABILITY.height, width),
    axis(top === 1 ? "1" : top.toFixed(1), ENTROPY.top, width),
    axis("0", ENTROPY.top + ENTROPY.height, width),
    diagonal(lane, scale, last),
    node("line", { class: "now", x1: LEFT, x2: width - RIGHT, visibility: "hidden" }),
  ];
  for (let slot = lane.blockLength; lane.blockLength && slot < lane.numSlots; slot += lane.blockLength) {
    parts.push(node("line", { class: "rule", x1: scale.x(slot), x2: scale.x(slot), y1: ORDER.top, y2: HEIGHT - 20 }));
  }
  return parts.flat();
}

/** Left to right at the same pace, to compare with. */
function diagonal(lane, scale, last) {
  const end = Math.max(0, ...lane.commits.map((commit) => commit.slot));
  if (end === 0) return [];
  const [x1, x2] = [scale.x(0.5), scale.x(end + 0.5)];
  return [node("line", { class: "diagonal", x1, y1: scale.step(0), x2, y2: scale.step(last) })];
}

function axis(text, y, width) {
  return [
    node("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
    label(text, LEFT - 8, y + 4, { "text-anchor": "end" }),
  ];
}

function describe(lane) {
  if (!lane.numCommitted) return "Charts: nothing is committed yet";
  const order = lane.commits.map((commit) => commit.slot).join(", ");
  const low = lane.commits.reduce((a, b) => (b.probability < a.probability ? b : a));
  return (
    `Order of the slots: ${order}. Least probable token: ${visible(low.token)} in slot ${low.slot}, ` +
    `probability ${low.probability.toFixed(2)}. The table below has every number.`
  );
}

function node(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function label(text, x, y, attributes) {
  const element = node("text", { x, y, ...attributes });
  element.textContent = text;
  return element;
}
