// The clock of the replay: a forward at a time, behind the stream while it is live, at the reader's will afterwards.

const WHOLE_MS = 4500;

export class Player extends EventTarget {
  constructor() {
    super();
    this.time = 0;
    this.end = 0;
    this.playing = false;
    this.live = false;
    this.speed = 1;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.expected = 1;
  }

  /** A new answer begins; `expected` forwards set the pace. */
  start(expected) {
    this.time = this.end = 0;
    this.expected = Math.max(1, expected);
    this.live = true;
    this.play();
  }

  /** The stream has come to `end` forwards. */
  extend(end) {
    this.end = end;
    if (this.still.matches && this.live) this.seek(end);
    else this.#changed();
  }

  /** The stream is over. */
  close() {
    this.live = false;
    if (this.time >= this.end) this.pause();
    else this.#changed();
  }

  play() {
    if (!this.live && this.time >= this.end) this.time = 0;
    this.playing = true;
    clearTimeout(this.timer);
    this.#tick();
  }

  pause() {
    this.playing = false;
    clearTimeout(this.timer);
    this.#changed();
  }

  toggle() {
    if (this.playing) this.pause();
    else if (this.end > 0) this.play();
  }

  seek(time) {
    this.time = Math.min(Math.max(0, time), this.end);
    this.#changed();
  }

  /** A person has taken the slider: stop, and show that moment. */
  hold(time) {
    this.playing = false;
    clearTimeout(this.timer);
    this.seek(time);
  }

  #tick() {
    if (!this.playing) return;
    if (this.time < this.end) this.time += 1;
    if (!this.live && this.time >= this.end) {
      this.pause();
      return;
    }
    this.#changed();
    const pace = Math.min(260, Math.max(24, WHOLE_MS / Math.max(this.expected, this.end)));
    this.timer = setTimeout(() => this.#tick(), pace / this.speed);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
