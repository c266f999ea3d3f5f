// What a person sees of one lane: name, numbers, board, canvas, charts and table, all of one moment.

import { Board } from "./sudoku.js";
import { Canvas, visible } from "./canvas.js";
import { Charts } from "./charts.js";

export class LaneView {
  constructor(lane) {
    this.lane = lane;
    this.element = document.getElementById("lane-template").content.firstElementChild.cloneNode(true);
    const find = (name) => this.element.querySelector(name);
    find(".lane-name").textContent = lane.sampler;
    this.mark = find(".lane-mark");
    this.stats = find(".lane-stats");
    this.readout = find(".readout");
    this.ledger = find(".ledger");
    this.canvas = new Canvas(find(".canvas"), lane);
    this.board = Board.of(find(".board"), lane);
    this.charts = new Charts(find(".charts"), lane);
    find(".ledger-scroll").setAttribute("aria-label", `Every commit of ${lane.sampler}`);
    this.ledger.addEventListener("toggle", () => this.#table());
    this.element.addEventListener("pointerover", (event) => this.#link(event.target.closest("[data-slot]")));
    this.element.addEventListener("pointerleave", () => this.#link(null));
    this.show(0);
  }

  /** The lane has got more commits, or is done; drawn at most once a frame. */
  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.charts.draw();
      if (this.lane.status !== "running") this.#table();
    });
  }

  show(forward) {
    const now = Math.min(forward, this.lane.numForwards);
    this.canvas.show(now);
    this.board?.show(now);
    this.charts.show(now);
    this.#numbers(now);
  }

  #numbers(forward) {
    const { lane } = this;
    const count = lane.until(forward).length;
    const isWhole = lane.status === "done" && forward >= lane.numForwards;
    const numbers = {
      forwards: forward,
      tokens: count,
      "tokens a forward": forward ? (count / forward).toFixed(1) : "–",
      "log-probability": isWhole ? lane.logprob.toFixed(2).replace("-", "−") : "–",
    };
    this.stats.replaceChildren(...Object.entries(numbers).map(([name, value]) => stat(name, value)));
    this.mark.textContent = [lane.status === "stopped" && "stopped", likelihood(lane)].filter(Boolean).join(", ");
  }

  #link(target) {
    for (const element of this.element.querySelectorAll(".linked")) element.classList.remove("linked");
    this.readout.textContent = "";
    if (!target) return;
    const { slot } = target.dataset;
    for (const element of this.element.querySelectorAll(`[data-slot="${slot}"]`)) element.classList.add("linked");
    const commit = this.lane.bySlot.get(Number(slot));
    this.readout.textContent = commit
      ? `Slot ${slot}: ${JSON.stringify(visible(commit.token))} at step ${commit.step}, probability ` +
        commit.probability.toFixed(3) +
        (commit.entropy === null ? "" : `, entropy ${commit.entropy.toFixed(2)} nats`)
      : `Slot ${slot}: not committed`;
  }

  #table() {
    if (!this.ledger.open) return;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of ["step", "slot", "token", "probability", "log-probability", "entropy"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const commit of this.lane.commits) {
      const row = body.insertRow();
      const { step, slot, token, probability, logprob, entropy } = commit;
      const shown = [step, slot, visible(token), probability.toFixed(4), logprob.toFixed(4), entropy?.toFixed(4) ?? ""];
      for (const value of shown) row.insertCell().textContent = value;
    }
    this.ledger.querySelector(".ledger-scroll").replaceChildren(table);
  }
}

function likelihood(lane) {
  return lane.exact === null ? "" : lane.exact ? "exact likelihood" : "no exact likelihood";
}

function stat(name, value) {
  const box = document.createElement("div");
  const term = document.createElement("dt");
  const number = document.createElement("dd");
  term.textContent = name;
  number.textContent = value;
  box.append(term, number);
  return box;
}
