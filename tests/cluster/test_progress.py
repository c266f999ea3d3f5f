"""What a person sees while a run goes on."""

import io

import pytest
from rich.console import Console

from cluster.progress import Progress, clock, plain_line, sparkline

METRICS = {
    "reward/mean": 0.4312,
    "reward/pass_rate": 0.4,
    "time/generate_s": 2.14,
    "time/update_s": 3.0,
    "time/step_s": 5.5,
    "failure/total": 2.0,
}


def terminal(**options):
    return Console(file=io.StringIO(), width=100, **options)


def test_plain_line_has_step_reward_times_and_remaining_time():
    line = plain_line(3, 60, METRICS, seconds=5.5, eta_s=313.5)
    assert line == "step 3/60  reward 0.4312  pass rate 0.4  failed 2  5.5 s (generate 2.1, update 3.0)  eta 5:14"


def test_file_gets_one_plain_line_a_step_without_colour():
    console = terminal()
    with Progress(2, console=console) as progress:
        progress.step(1, METRICS)
        progress.sample("1+1=", "2", 1.0)
        progress.note("evaluation at step 1: countdown 0.44 [not markup]")
        progress.step(2, METRICS)
    lines = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/2",
        "evaluation at step 1: countdown 0.44 [not markup]",
        "step 2/2",
    ]
    assert "\x1b" not in console.file.getvalue()


def test_long_line_is_not_wrapped_in_a_file():
    console = terminal()
    with Progress(2, console=console) as progress:
        progress.note("x" * 300)
    assert console.file.getvalue() == "x" * 300 + "\n"


def test_remaining_time_follows_the_latest_steps():
    console = terminal()
    with Progress(100, console=console) as progress:
        progress.step(10, {"time/step_s": 2.0})
        progress.step(11, {"time/step_s": 4.0})
    # mean of 2 and 4 seconds for 89 steps: 267 s
    assert console.file.getvalue().splitlines()[-1].endswith("eta 4:27")


def test_terminal_shows_curve_phases_sample_and_notes():
    console = terminal(force_terminal=True)
    with Progress(2, title="quickstart", console=console) as progress:
        progress.step(1, METRICS)
        progress.sample("37+485=", "522", 1.0)
        progress.note("checkpoint: here")
        progress.step(2, METRICS | {"reward/mean": 0.9})
    shown = console.file.getvalue()
    for part in ("quickstart", "step 2/2", "▁█", "generate 2.1 s", "37+485=", "522", "checkpoint: here", "failed 2"):
        assert part in shown


def test_terminal_is_whole_again_after_an_error():
    console = terminal(force_terminal=True)

    def broken():
        with Progress(2, console=console) as progress:
            progress.step(1, METRICS)
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        broken()
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(list(range(1000)))) <= 40
    assert sparkline([1, 1, 3, 3], columns=2) == "▁█"


def test_clock_reads_like_a_clock():
    assert [clock(s) for s in (0, 42, 725, 11220)] == ["0:00", "0:42", "12:05", "3:07:00"]
