"""What a person watches while a run goes on: a small live panel on a terminal, one plain line a step elsewhere.

    with Progress(60, title="quickstart") as progress:
        progress.step(1, {"reward/mean": 0.31, "time/generate_s": 2.1, "time/update_s": 3.0})
        progress.sample("030,100,093=023:", "030+093-100", 1.0)
        progress.note("evaluation at step 20: countdown 0.44")

Metrics have the names of `cluster.metrics`; what a step does not report is not shown.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.terminal import console as shared_console

BARS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 40
ETA_STEPS = 10
"""Latest steps whose mean time the remaining time is reckoned with."""
SAMPLE_CHARS = 200

_NUMBERS = {
    "reward/mean": "reward",
    "reward/pass_rate": "pass rate",
    "reward/zero_variance_rate": "no signal",
    "rollout/forwards_per_answer": "forwards/answer",
    "rollout/tokens_per_s": "tokens/s",
    "train/kl": "kl",
    "train/clip_rate": "clipped",
    "sft/loss": "loss",
    "sft/tokens_per_s": "tokens/s",
}
_PLAIN = ("reward", "pass rate", "no signal", "kl", "loss")
_CURVE = "reward/mean"


class Progress:
    """The view of one run; made with `with`, so that the terminal is whole again whatever happens."""

    def __init__(
        self, total_steps: int, *, plain: bool | None = None, title: str = "", console: Console | None = None
    ) -> None:
        self._console = console or shared_console()
        self._plain = not self._console.is_terminal if plain is None else plain
        self._total_steps = total_steps
        self._title = title
        self._step = 0
        self._metrics: Mapping[str, float] = {}
        self._curve: list[float] = []
        self._sample: tuple[str, str, float | None] | None = None
        self._seconds: deque[float] = deque(maxlen=ETA_STEPS)
        self._last_time = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        self._last_time = time.monotonic()
        if not self._plain:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done, and this is what it measured."""
        now = time.monotonic()
        self._seconds.append(metrics.get("time/step_s", now - self._last_time))
        self._last_time = now
        self._step, self._metrics = step, dict(metrics)
        if _CURVE in metrics:
            self._curve.append(metrics[_CURVE])
        if self._plain:
            self._line(plain_line(step, self._total_steps, metrics, seconds=self._seconds[-1], eta_s=self._eta_s))

    def sample(self, prompt: str, answer: str, reward: float | None = None) -> None:
        """One of the latest answers, for the panel; plain output leaves it to the sample table."""
        self._sample = (prompt, answer, reward)

    def note(self, text: str) -> None:
        """A line of text beside the steps: an evaluation, a checkpoint, something lost and brought back."""
        self._line(text)
        self._last_time = time.monotonic()

    @property
    def _eta_s(self) -> float:
        return (self._total_steps - self._step) * sum(self._seconds) / max(len(self._seconds), 1)

    def _line(self, text: str) -> None:
        if self._plain:
            self._console.print(Text(text), soft_wrap=True, no_wrap=True, style=None)
        else:
            self._console.print(Text(text, style="dim"))

    def _panel(self) -> RenderableType:
        rows: list[RenderableType] = [self._bar()]
        if self._metrics:
            rows += [self._numbers(), self._phases()]
        if self._sample is not None:
            rows.append(_sample_text(*self._sample))
        return Panel(Group(*rows), title=self._title or None, title_align="left", border_style="dim")

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column()
        grid.add_column(ratio=1)
        grid.add_column()
        eta = f"eta {clock(self._eta_s)}" if self._seconds else "starting"
        label = Text(f"step {self._step}/{self._total_steps}", style="bold")
        grid.add_row(label, ProgressBar(total=self._total_steps, completed=self._step), Text(eta, style="cyan"))
        return grid

    def _numbers(self) -> Text:
        text = Text()
        if self._curve:
            text.append(sparkline(self._curve) + "  ", style="green")
        text.append("  ".join(f"{label} {value}" for label, value in labelled(self._metrics).items()))
        if failed := self._metrics.get("failure/total", 0.0):
            text.append(f"  failed {failed:g}", style="red")
        return text

    def _phases(self) -> Text:
        shown = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in phases(self._metrics).items())
        return Text(shown, style="dim")


def plain_line(step: int, total_steps: int, metrics: Mapping[str, float], *, seconds: float, eta_s: float) -> str:
    """One step in one line, for a file."""
    numbers = labelled(metrics)
    shown = [f"{label} {numbers[label]}" for label in _PLAIN if label in numbers]
    if failed := metrics.get("failure/total", 0.0):
        shown.append(f"failed {failed:g}")
    inside = ", ".join(f"{name} {spent:.1f}" for name, spent in phases(metrics).items())
    times = f"{seconds:.1f} s ({inside})" if inside else f"{seconds:.1f} s"
    return "  ".join([f"step {step}/{total_steps}", *shown, times, f"eta {clock(eta_s)}"])


def labelled(metrics: Mapping[str, float]) -> dict[str, str]:
    """The numbers worth watching by their short names."""
    return {label: f"{metrics[name]:.4g}" for name, label in _NUMBERS.items() if name in metrics}


def phases(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage of a step; the whole step and sums of stages (`wait_`) are not among them."""
    stages = {name[len("time/") : -len("_s")]: value for name, value in metrics.items() if name.startswith("time/")}
    return {name: value for name, value in stages.items() if name != "step" and not name.startswith("wait_")}


def sparkline(values: Sequence[float], columns: int = SPARK_COLUMNS) -> str:
    """A curve in one line of text, lowest value to highest; more values than columns are averaged."""
    size = -(-len(values) // columns)
    means = [
        sum(values[start : start + size]) / len(values[start : start + size]) for start in range(0, len(values), size)
    ]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * len(means)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in means)


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:07:00."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _sample_text(prompt: str, answer: str, reward: float | None) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(_one_line(prompt)[-SAMPLE_CHARS:], style="dim")
    text.append(" " + _one_line(answer)[:SAMPLE_CHARS], style="bold")
    if reward is not None:
        text.append(f"  {reward:.2f}", style="green" if reward > 0 else "red")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
