// The board of a 4x4 Sudoku prompt such as `0310200404001043:`; its answer fills the cells in any order.

import { paint, visible } from "./canvas.js";

const PUZZLE = /^([0-4]{16}):$/;
const UNITS = [0, 1, 2, 3].flatMap((n) => [
  [0, 1, 2, 3].map((k) => 4 * n + k),
  [0, 1, 2, 3].map((k) => n + 4 * k),
  [0, 1, 4, 5].map((k) => k + 8 * (n >> 1) + 2 * (n & 1)),
]);

export class Board {
  /** Null for a prompt that is no puzzle, or a canvas too small for it. */
  static of(element, lane) {
    const puzzle = PUZZLE.exec(lane.prompt.trim())?.[1];
    return puzzle && lane.numSlots >= 16 ? new Board(element, lane, puzzle) : null;
  }

  constructor(element, lane, puzzle) {
    Object.assign(this, { element, lane, puzzle });
    this.cells = Array.from(puzzle, (given, slot) => {
      const cell = document.createElement("div");
      cell.className = given === "0" ? "cell" : "cell is-given";
      cell.dataset.slot = slot;
      cell.append(document.createElement("span"));
      return cell;
    });
    element.replaceChildren(...this.cells);
    element.setAttribute("role", "img");
    element.hidden = false;
  }

  show(forward) {
    const standing = new Map(this.lane.until(forward).map((commit) => [commit.slot, commit]));
    const digits = Array.from(this.puzzle, (given, slot) => visible(standing.get(slot)?.token ?? given));
    const broken = conflicts(digits, this.puzzle);
    this.cells.forEach((cell, slot) => {
      paint(cell, standing.get(slot), this.lane, forward);
      cell.firstChild.textContent = digits[slot] === "0" ? "" : digits[slot];
      cell.classList.toggle("broken", broken.has(slot));
    });
    const rows = [0, 4, 8, 12].map((start) => digits.slice(start, start + 4).join(" ").replaceAll("0", "blank"));
    const verdict = broken.size ? `${broken.size} cells break the rules` : "no rule is broken";
    this.element.setAttribute("aria-label", `Sudoku, row by row: ${rows.join("; ")}; ${verdict}`);
  }
}

/** Cells that repeat a digit of their row, column or box, or that change a given. */
export function conflicts(digits, puzzle) {
  const broken = new Set(
    [...digits.keys()].filter((slot) => puzzle[slot] !== "0" && digits[slot] !== puzzle[slot]),
  );
  for (const unit of UNITS) {
    for (const slot of unit) {
      const same = unit.filter((other) => digits[other] === digits[slot]);
      if (digits[slot] !== "0" && same.length > 1) same.forEach((other) => broken.add(other));
    }
  }
  return broken;
}
