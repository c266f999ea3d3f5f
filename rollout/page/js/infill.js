// Text with holes: `⟦4⟧` in a text area stands for a hole of four slots.

const HOLE = /⟦\s*(\d+)\s*⟧/g;

/** Parts of the canvas, in order: `{text}` and `{slots}`. */
export function partsOf(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(HOLE)) {
    if (found.index > end) parts.push({ text: text.slice(end, found.index) });
    if (Number(found[1]) > 0) parts.push({ slots: Number(found[1]) });
    end = found.index + found[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end) });
  return parts;
}

/** The same for the server. */
export function segmentsOf(parts) {
  return parts.map((part) => (part.slots === undefined ? { text: part.text } : { hole: part.slots }));
}

/** Puts a hole of about as many slots in place of the selection; says so, or why not. */
export function holeFromSelection(area, charactersPerToken) {
  const { selectionStart: start, selectionEnd: end, value } = area;
  if (start === end) return "Select some of the text first; the selection becomes a hole.";
  const selected = value.slice(start, end);
  const slots = Math.max(1, Math.ceil(selected.replace(HOLE, "").length / charactersPerToken));
  area.setRangeText(`⟦${slots}⟧`, start, end, "end");
  area.dispatchEvent(new Event("input", { bubbles: true }));
  return `${JSON.stringify(selected)} became a hole of ${slots} slots.`;
}
