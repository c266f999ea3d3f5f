// One answer as it is denoised: what was committed where, when, and how sure the model was. Time is counted in forwards.

/** A part of the canvas: `{text}` that is given, or `{slots}` to fill. */
export function slotCount(parts) {
  return parts.reduce((sum, part) => sum + (part.slots ?? 0), 0);
}

export class Lane {
  constructor({ sampler, exact = null, parts, blockLength = null, prompt = "" }) {
    Object.assign(this, { sampler, exact, parts, prompt });
    this.blockLength = blockLength > 0 ? blockLength : null;
    this.numSlots = slotCount(parts);
    this.commits = [];
    this.bySlot = new Map();
    this.numForwards = 0;
    this.numSteps = 0;
    this.status = "waiting";
    this.result = null;
  }

  /** Takes in a `step` event. */
  addStep({ step, commits, num_forwards: forwards }) {
    this.status = "running";
    this.numForwards = Math.max(this.numForwards + 1, forwards ?? 0);
    this.numSteps = step + 1;
    for (const commit of commits) {
      this.#commit({
        slot: commit.position,
        step,
        forward: this.numForwards,
        token: commit.token,
        tokenId: commit.token_id,
        probability: commit.probability,
        logprob: commit.logprob,
        entropy: commit.entropy ?? null,
      });
    }
  }

  /** Takes in the `done` event: entropies, and commits that no step event has told. */
  finish(done) {
    this.result = done;
    this.status = "done";
    const steps = done.step_map ?? [];
    const total = done.num_forwards ?? this.numForwards;
    steps.forEach((step, slot) => {
      const commit = this.bySlot.get(slot);
      if (commit) commit.entropy = done.entropies[slot];
      else if (step < done.num_steps) this.#fromRecord(done, slot, step, total);
    });
    this.numForwards = Math.max(total, ...this.commits.map((commit) => commit.forward));
    this.numSteps = 1 + Math.max(-1, ...this.commits.map((commit) => commit.step));
  }

  /** Commits that stand after `forward` forwards. */
  until(forward) {
    return this.commits.filter((commit) => commit.forward <= forward);
  }

  /** Place of a commit among the steps, 0 for the first and 1 for the last; the scale of the colours. */
  share(commit) {
    const last = this.status === "done" ? this.numSteps - 1 : Math.max(this.numSteps, this.numSlots) - 1;
    return last > 0 ? Math.min(1, commit.step / last) : 0;
  }

  get numCommitted() {
    return this.commits.length;
  }

  get logprob() {
    return this.commits.reduce((sum, commit) => sum + commit.logprob, 0);
  }

  get text() {
    return this.result?.text ?? this.commits.toSorted((a, b) => a.slot - b.slot).map((c) => c.token).join("");
  }

  #commit(commit) {
    this.commits.push({ entropy: null, ...commit });
    this.bySlot.set(commit.slot, this.commits.at(-1));
  }

  #fromRecord(done, slot, step, total) {
    this.#commit({
      slot,
      step,
      forward: Math.max(1, Math.round(((step + 1) * total) / done.num_steps)),
      token: done.token_texts[slot],
      tokenId: done.tokens[slot],
      probability: Math.exp(done.logprobs[slot]),
      logprob: done.logprobs[slot],
      entropy: done.entropies[slot],
    });
  }
}

/** How two finished lanes compare, in a sentence. */
export function verdict(first, second) {
  if (first.status !== "done" || second.status !== "done") return "";
  const [a, b] = [first.numForwards, second.numForwards];
  const [few, many] = a <= b ? [first, second] : [second, first];
  const cost =
    a === b
      ? `Both took ${a} forwards.`
      : `${few.sampler} took ${few.numForwards} forwards where ${many.sampler} took ${many.numForwards}, ` +
        `${(many.numForwards / few.numForwards).toFixed(1)} times as many.`;
  return `${cost} ${first.text === second.text ? "The answers are the same." : "The answers differ."}`;
}
