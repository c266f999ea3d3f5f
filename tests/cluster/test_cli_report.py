"""What the commands print at the end."""

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from cluster.evaluate import summarise
from cluster.report import show_evaluations, show_sft_summary, show_train_summary
from cluster.sft_run import SftSummary
from cluster.terminal import denoising_order
from cluster.train_run import TrainSummary
from rollout.records import Failed, Group, Prompt, Trajectory


def printed(show, *values):
    console = Console(file=io.StringIO(), width=140)
    show(console, *values)
    return console.file.getvalue()


def accuracy(share, low, high):
    name = "eval.countdown/accuracy"
    return {name: share, f"{name}_low": low, f"{name}_high": high, "eval.countdown/num_prompts": 64.0}


def test_training_ends_with_both_evaluations_the_run_and_the_checkpoint():
    summary = TrainSummary(
        run_dir=Path("runs/quickstart"),
        steps_done=60,
        first=accuracy(0.25, 0.2, 0.3),
        last=accuracy(0.5, 0.45, 0.55),
        checkpoint=Path("runs/quickstart/checkpoints/step_000060"),
        run_id="abc",
        uri="sqlite:///runs/mlflow.db",
    )
    text = printed(show_train_summary, summary)
    (row,) = [line for line in text.splitlines() if "countdown" in line]
    assert " ".join(row.split()) == "countdown 25.0 % (20.0 to 30.0) 50.0 % (45.0 to 55.0) +25.0"
    assert "runs/quickstart/checkpoints/step_000060/model" in text
    assert "run abc in sqlite:///runs/mlflow.db" in text
    assert "unmask ui --runs-dir runs" in text


def test_supervised_run_ends_with_first_best_and_last_evaluation():
    first, best, last = ({"step": step, "eval/loss": loss} for step, loss in ((0, 3.0), (10, 1.0), (20, 1.5)))
    summary = SftSummary("runs/sft", 20, first, last, best, 10, "runs/sft/checkpoints/best/model")
    text = printed(show_sft_summary, summary)
    assert "best, step 10" in text
    assert [line.split() for line in text.splitlines() if "loss" in line] == [["eval/loss", "3", "1", "1.5"]]
    assert "runs/sft/checkpoints/best/model" in text


def test_evaluation_with_nothing_graded_shows_dashes():
    lost = Group(Prompt(id="p", task="t", text="x"), [answer()], [Failed("timeout", "late")])
    text = printed(show_evaluations, [("ar", summarise("t", [lost], k=[1]))])
    assert text.splitlines()[1].split()[:4] == ["t", "ar", "0", "-"]


def test_order_of_denoising_shows_as_colour_from_first_to_last():
    text = denoising_order(answer(), ["a", "b", "c"])
    assert text.plain == "abc"
    assert [span.style for span in text.spans] == ["rgb(255,214,102)", "rgb(94,129,255)", "rgb(174,172,178)"]


def answer():
    return Trajectory(
        tokens=np.array([5, 6, 7]),
        step_map=np.array([0, 2, 1], dtype=np.int32),
        logprobs=np.zeros(3, dtype=np.float32),
        entropies=np.zeros(3, dtype=np.float32),
        num_steps=3,
        num_forwards=3,
        finish_reason="length",
        answer_length=3,
        seed=0,
        sampler="ar",
        exact_likelihood=True,
        temperature=0.0,
        top_p=1.0,
        block_length=3,
    )
