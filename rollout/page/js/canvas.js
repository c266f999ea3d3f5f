// A lane's canvas: given text and one tile a slot. Tiles are made once and then only change.

const END = /^<\|?(eos|end|endoftext|end_of_text|im_end|eot_id|eot)\|?>$|^<\/s>$|^\[EOS\]$|^$/i;

/** Characters of a prompt above which the canvas shows its end only, so that the answer stays in view. */
const LONG = 600;

export class Canvas {
  constructor(element, lane) {
    this.element = element;
    this.lane = lane;
    this.tiles = [];
    element.replaceChildren(...lane.parts.flatMap((part) => this.#part(part)));
  }

  /** Shows what stands after `forward` forwards. */
  show(forward) {
    const lane = this.lane;
    const standing = new Map(lane.until(forward).map((commit) => [commit.slot, commit]));
    this.tiles.forEach((tile, slot) => {
      const commit = standing.get(slot);
      paint(tile, commit, lane, forward);
      tile.classList.toggle("unused", !commit && lane.status === "done" && forward >= lane.numForwards);
      if (commit) write(tile, commit.token);
      else if (tile.textContent) clear(tile);
    });
    this.element.setAttribute("aria-label", this.#label(standing));
  }

  #part(part) {
    if (part.slots === undefined) {
      const given = document.createElement("span");
      given.className = "given";
      const isLong = this.lane.prompt && part.text.length > LONG;
      given.textContent = isLong ? `… ${part.text.slice(-LONG / 2)}` : part.text;
      if (isLong) given.title = part.text;
      return [given];
    }
    return Array.from({ length: part.slots }, () => this.#tile());
  }

  #tile() {
    const tile = document.createElement("span");
    const slot = this.tiles.push(tile) - 1;
    tile.className = "tile";
    tile.dataset.slot = slot;
    if (this.lane.blockLength && slot % this.lane.blockLength === 0) tile.classList.add("starts-block");
    return tile;
  }

  #label(standing) {
    let slot = 0;
    const text = this.lane.parts
      .map((part) =>
        part.slots === undefined
          ? part.text
          : Array.from({ length: part.slots }, () => standing.get(slot++)?.token ?? "_").join(""),
      )
      .join("");
    return `${standing.size} of ${this.lane.numSlots} slots filled: ${text}`;
  }
}

/** Colour and movement of a slot's element, tile or cell. */
export function paint(element, commit, lane, forward) {
  const isNew = commit && !element.classList.contains("hue");
  element.classList.toggle("hue", Boolean(commit));
  element.classList.toggle("fresh", Boolean(isNew) && commit.forward === forward);
  element.classList.toggle("latest", Boolean(commit) && commit.forward === forward && forward < lane.numForwards);
  if (!commit) return;
  element.style.setProperty("--t", lane.share(commit).toFixed(3));
  element.style.setProperty("--p", commit.probability.toFixed(3));
}

/** A token as a person can see it. */
export function visible(token) {
  if (END.test(token)) return "end";
  return token.replaceAll("\n", "↵").replaceAll("\t", "→");
}

function write(tile, token) {
  const text = visible(token);
  if (tile.textContent === text) return;
  tile.textContent = text;
  tile.classList.toggle("special", END.test(token));
  if (token.endsWith("\n")) tile.after(document.createElement("br"));
}

function clear(tile) {
  tile.textContent = "";
  tile.classList.remove("special");
  if (tile.nextSibling?.nodeName === "BR") tile.nextSibling.remove();
}
