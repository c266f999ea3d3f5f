"""Wrong input gets one screen with the fix and exit status 2, before any actor starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.cli import main

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must be refused; gives the error text."""
    was_running = ray.is_initialized()

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert caught.value.code == 2
        assert ray.is_initialized() == was_running
        assert "Traceback" not in error
        assert len(error.splitlines()) <= 24
        assert not (tmp_path / "runs").exists()
        return error

    return run


@pytest.fixture
def train(refused, small_model, tmp_path):
    """`unmask train` of the quickstart on the small model, with further settings."""

    def run(*overrides):
        settings = [f"model.path={small_model}", f"runs_dir={tmp_path / 'runs'}", *overrides]
        return refused("train", QUICKSTART, *(part for setting in settings for part in ("--set", setting)))

    return run


def test_unknown_recipe_key(train):
    assert "rollout.temprature: unknown key (did you mean 'temperature'?)" in train("rollout.temprature=1")


def test_missing_model_folder(train, refused, tmp_path):
    missing = tmp_path / "nothing" / "here"
    assert f"model {str(missing)!r}: no such folder" in train(f"model.path={missing}")
    assert "no such folder" in refused("generate", "--model", missing, "--prompt", "1")
    assert "no such folder" in refused("eval", "--model", missing, "--task", "countdown")


def test_model_folder_without_weights(train, small_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(small_model, bare)
    (bare / "model.safetensors").unlink()
    assert f"{bare} holds no safetensors file" in train(f"model.path={bare}")


def test_corrupt_weights(train, refused, small_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for error in (train(f"model.path={broken}"), refused("generate", "--model", broken, "--prompt", "1")):
        assert f"{weights}: corrupt or truncated safetensors file" in error
        assert "fetch it again" in error


def test_prompt_longer_than_the_window(train, refused, small_model, tmp_path):
    error = train("rollout.max_new_tokens=500")
    assert "has 17 tokens and rollout.max_new_tokens is 500: together 517, but the window" in error
    assert "Lower rollout.max_new_tokens" in error
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "1"}) + "\n" + json.dumps({"prompt": "1" * 600}) + "\n")
    error = refused("generate", "--model", small_model, "--prompts", file)
    assert f"{file}, line 2: prompt 'prompt-2' has 600 tokens" in error


def test_task_file_with_a_broken_row(train, refused, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("Puzzle,Solution\n0310200404001043,4312213434211243\n03102004,4312213434211243\n")
    error = train(f"tasks.0.test_file={rows}")
    assert f"{rows}, line 3" in error
    assert "allowed" in error
    assert f"{rows}, line 3" in refused("eval", "--task", "sudoku4", "--test-file", rows)


def test_no_gpu_where_the_recipe_wants_two(small_model, tmp_path):
    # In a process of its own: other tests of this one may have started Ray, and a joined cluster is asked later.
    settings = ["learner.engine.num_ranks=2", "learner.engine.gpus_per_rank=1", f"model.path={small_model}"]
    settings.append(f"runs_dir={tmp_path / 'runs'}")
    code = (
        "import ray, atexit; from cluster.cli import main; atexit.register(lambda: print(ray.is_initialized())); main()"
    )
    command = [sys.executable, "-c", code, "train", str(QUICKSTART), *(p for s in settings for p in ("--set", s))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, cwd=QUICKSTART.parents[1], check=False, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 GPU wanted together, 0 exist" in done.stderr
    assert "learner.engine.num_ranks" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.sampler.name=lcr"], "'lcr' draws tokens before it chooses positions"),
        (["learner.objective.likelihood=ar_exact"], "scores answers left to right"),
        (["rollout.sampler.name=confidance"], "rollout.sampler: unknown sampler 'confidance'"),
        (["eval.sampler.options.tua=1"], "eval.sampler: sampler 'confidence' has no option 'tua'"),
        (["rollout.num_samples=1"], "rollout.num_samples 1 is below learner.objective.min_valid 2"),
        (["rollout.top_p=0.9"], "rollout.top_p 0.9"),
        (["tasks.0.name=sudoku"], "did you mean 'sudoku4'"),
        (["tasks=[{name: sudoku4}, {name: sudoku4}]"], "a task stands twice"),
        (["tasks=[{name: jsonl}]"], "task jsonl has no rows of its own"),
    ],
)
def test_settings_that_cannot_train(train, overrides, expected):
    assert expected in train(*overrides)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "not JSON"),
        ('{"text": "1"}', "give exactly one of prompt and messages"),
        ('{"prompt": "1", "messages": []}', "give exactly one of prompt and messages"),
        ('{"prompt": ""}', "prompt is ''"),
        ('{"prompt": "1", "sampler": "confidance"}', "unknown sampler 'confidance' (did you mean 'confidence'?)"),
        ('{"prompt": "1", "seed": "x"}', "seed is 'x'; it must be a whole number"),
        ('{"prompt": "1", "sampelr": "ar"}', "unknown field 'sampelr' (did you mean 'sampler'?)"),
        ('{"prompt": "1", "id": "first"}', "id 'first' is that of"),
        ('{"prompt": "caf\u00e9"}', "does not know"),
    ],
)
def test_broken_prompt_row_is_named_by_file_and_line(refused, small_model, tmp_path, row, expected):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"id": "first", "prompt": "1"}}\n\n{row}\n')
    error = refused("generate", "--model", small_model, "--prompts", file)
    assert f"{file}, line 3" in error
    assert expected in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate"], "give --prompt TEXT"),
        (["generate", "--prompt", "1", "--set", "rollout.x=1"], "only options of the sampler and of the cache"),
        (["generate", "--prompt", "1", "--dtype", "float8"], "float8"),
        (["eval", "--task", "countdown", "--k", "1,8", "--num-samples", "4"], "pass@8 needs"),
        (["eval", "--task", "countdown", "--k", "one"], "write whole numbers"),
        (["eval", "--task", "countdwn"], "did you mean 'countdown'"),
        (["eval", "--task", "countdown,sudoku4", "--test-file", "x.jsonl"], "write TASK=FILE"),
        (["eval", "--task", "countdown", "--json", "no/such/folder/x.json"], "there is no folder"),
        (["init-model", "--tokenizer-from", "no.jsonl", "--out", "no-model"], "no.jsonl cannot be read"),
        (["grade", "--task", "countdown", "--completions", "no.jsonl"], "no.jsonl cannot be read"),
    ],
)
def test_wrong_options_say_what_is_right(refused, arguments, expected):
    assert expected in refused(*arguments)
