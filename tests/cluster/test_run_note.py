"""The description of a run says first what came out."""

import re
from pathlib import Path

from cluster.config import SftRecipe, TrainRecipe
from cluster.line_file import LineFile, read_lines
from cluster.run_note import RunNote
from cluster.versions import code_version, library_versions


def note(recipe, accuracies, **fields):
    return RunNote(recipe, accuracies, run_dir=Path("runs/demo"), code_version="abc", **fields).markdown()


def test_the_result_comes_first_and_counts_in_points():
    text = note(TrainRecipe(tasks=[{"name": "sum"}]), {"sum": [(0, 0.5), (10, 0.25)], "b": [(0, 0.125)]})
    first, second, *_ = text.split("\n\n")
    assert first == "Held-out accuracy: b 12.5% at step 0; sum 50.0% → 25.0% at step 10 (**-25.0 points**)"
    assert second.startswith("**GRPO** of `tiny` on sum, seed 0: 100 steps of 16 prompts x 8 answers")


def test_a_supervised_run_without_evaluation_has_neither_result_nor_picture():
    text = note(SftRecipe(tasks=[{"name": "sum"}]), {}, checkpoint=Path("runs/demo/model"))
    assert text.startswith("**Supervised fine-tuning** of `tiny` on sum")
    assert "unmask eval --model runs/demo/model --task sum" in text
    assert "![" not in text


def test_failed_uploads_are_owned_up_to():
    assert "`metrics.jsonl` in the run folder is complete" in note(
        TrainRecipe(tasks=[{"name": "sum"}]), {}, upload_failures=True
    )


def test_the_code_version_is_a_commit_or_names_the_package():
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unmask \d+\.\d+.*", code_version())
    assert {"python", "torch", "ray"} <= library_versions().keys()


def test_half_a_character_survives_a_line_file(tmp_path):
    file = LineFile(tmp_path / "rows.jsonl")
    assert [file.append({"answer": text}) for text in ("\udc80", "ö")] == [0, 1]
    file.close()
    assert [row["answer"] for row in read_lines(tmp_path / "rows.jsonl")] == ["\udc80", "ö"]
