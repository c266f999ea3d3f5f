"""Advantages come from graded answers only, and checkpoints of other settings are refused."""

import json

import pytest

from cluster.checkpointing import RunState, commit, fixed_settings, newest
from cluster.config import TrainRecipe
from cluster.cursor import CursorState
from cluster.loop import with_advantages
from cluster.step_report import first_rows, sample_rows
from cluster.stopwatch import Stopwatch
from learner import checkpoint
from rollout.records import Failed, Group, Prompt, Scored
from tests.cluster.standins import trajectory

RECIPE = TrainRecipe.model_validate({"tasks": [{"name": "arithmetic"}]})


def group(name, *values):
    """One answer a value; None is a failed grading."""
    scores = [
        Failed("grader_timeout", "late") if value is None else Scored(value, {"correct": value}) for value in values
    ]
    prompt = Prompt(id=name, task="t", text=f"{name}?")
    return Group(prompt, [trajectory(name, index) for index in range(len(values))], scores)


def test_failed_answers_leave_the_batch_and_do_not_move_their_group():
    samples = with_advantages([group("a", 1.0, 0.0, None), group("b", 1.0, 1.0, 0.0)], RECIPE)
    # a: mean of (1, 0) is 1/2; b: mean of (1, 1, 0) is 2/3
    assert [(s.trajectory.prompt_id, s.trajectory.sample_index) for s in samples] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2),
    ]  # fmt: skip
    assert [sample.advantage for sample in samples] == pytest.approx([0.5, -0.5, 1 / 3, 1 / 3, -2 / 3], abs=1e-6)


def test_sample_rows_show_a_failure_as_no_reward():
    rows = sample_rows(group("a", 1.0, None))
    assert [row["reward"] for row in rows] == [1.0, None]
    assert rows[1]["failure"] == "grader_timeout: late"
    assert rows[0]["prompt"] == "a?"


def test_the_sample_table_shows_many_prompts_first():
    rows = first_rows([group("a", 1.0, 0.0), group("b", 1.0), group("c", 0.0, 1.0)], 4)
    assert [(row["prompt_id"], row["reward"]) for row in rows] == [("a", 1.0), ("b", 1.0), ("c", 0.0), ("a", 0.0)]


def test_stopwatch_adds_up_stages_and_starts_anew_each_lap():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("generate"):
            pass
    first = watch.lap()
    assert set(first) == {"generate", "step"}
    assert first["step"] >= first["generate"] >= 0
    assert set(watch.lap()) == {"step"}


def save(folder, step, recipe=RECIPE, num_ranks=1, **engine):
    state = RunState(
        step=step,
        cursor=CursorState(frontier=7, done_above=(9,)),
        ended={"trained": 6, "dropped": 1, "failed": 1},
        run_id="abc",
        first_evaluation={"eval.arithmetic/accuracy": 0.5},
        fixed=fixed_settings(recipe),
    )
    path = checkpoint.step_folder(folder, step)
    checkpoint.start(path)
    checkpoint.finish(path, {"run": state.model_dump(mode="json"), "world_size": num_ranks, **engine})
    return state


def test_the_newest_checkpoint_is_found_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        state = save(tmp_path, step)
        commit(tmp_path, step, keep=2)
    assert newest(tmp_path, RECIPE) == (tmp_path / "step_000003", state)
    assert (tmp_path / "latest").resolve() == tmp_path / "step_000003"
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_000002", "step_000003"]


def test_no_checkpoint_means_from_the_beginning(tmp_path):
    assert newest(tmp_path, RECIPE) is None


def test_a_checkpoint_of_another_prompt_order_is_refused_by_name(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(ValueError, match=r"step_000003 cannot be resumed(.|\n)*seed: was 0, is 1"):
        newest(tmp_path, RECIPE.model_copy(update={"seed": 1}))
    assert newest(tmp_path, RECIPE.model_copy(update={"steps": 999})) is not None


def test_a_checkpoint_of_another_number_of_ranks_is_taken_with_a_word(tmp_path, caplog):
    state = save(tmp_path, 3, num_ranks=2)
    assert newest(tmp_path, RECIPE) == (tmp_path / "step_000003", state)
    assert "saved by 2 learner ranks, this run has 1" in caplog.text


def test_a_checkpoint_of_another_stage_or_precision_is_refused(tmp_path):
    save(tmp_path, 3, zero_stage=3, dtype="float32")
    with pytest.raises(ValueError, match=r"learner\.engine\.zero_stage 3 and it is 1 now(.|\n)*--set model\.path="):
        newest(tmp_path, RECIPE)


def test_state_survives_the_checkpoint_file(tmp_path):
    state = save(tmp_path, 3)
    text = json.dumps(state.model_dump(mode="json"))
    assert RunState.model_validate_json(text) == state
