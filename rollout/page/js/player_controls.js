// Slider, buttons and keys of the replay.

const $ = (id) => document.getElementById(id);
const TYPING = "input:not([type=range], [type=radio]), textarea, select, button, summary, a";

export function connectPlayer(player, views, stop) {
  player.addEventListener("change", () => show(player, views()));
  $("play").addEventListener("click", () => player.toggle());
  $("time").addEventListener("input", () => player.hold(Number($("time").value)));
  $("speed").addEventListener("change", () => (player.speed = Number($("speed").value)));
  for (const radio of document.querySelectorAll("input[name=colour]")) {
    radio.addEventListener("change", () => colour(radio.value));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    if (event.target.closest(TYPING) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") {
      event.preventDefault();
      player.toggle();
    }
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way && !event.target.closest("input")) player.hold(player.time + way);
  });
}

function show(player, views) {
  for (const view of views) view.show(player.time);
  const slider = $("time");
  slider.max = Math.max(player.end, player.live ? player.expected : 0);
  slider.value = player.time;
  slider.disabled = player.end === 0;
  slider.setAttribute("aria-valuetext", `forward ${player.time} of ${player.end}`);
  const count = document.createElement("b");
  count.textContent = player.time;
  $("clock").replaceChildren(...(player.end ? ["forward ", count, player.live ? "" : ` of ${player.end}`] : ["ready"]));
  $("play").disabled = player.end === 0;
  $("play").dataset.playing = player.playing;
  $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
}

function colour(by) {
  $("stage").dataset.colour = by;
  $("ramp-from").textContent = by === "step" ? "first" : "0";
  $("ramp-to").textContent = by === "step" ? "last" : "1";
}
