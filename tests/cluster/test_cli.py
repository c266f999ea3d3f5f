"""The command line: what it prints, what it refuses, and with which exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import models
from cluster.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def unmask(capsys):
    """Runs a command; gives exit status, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_help_lists_the_commands(unmask):
    status, out, _ = unmask("--help")
    assert status == 0
    for command in ("train", "sft", "generate", "eval", "grade", "init-model", "ui", "bench"):
        assert command in out


def test_generate_answers_prompts_and_prints_one_trajectory_a_line(unmask, small_model):
    arguments = ("--model", small_model, "--prompt", "1+1=", "--prompt", "2+2=", "--num-samples", 2)
    status, out, _ = unmask(
        "generate", *arguments, "--max-new-tokens", 6, "--sampler", "random", "--temperature", 1, "--json"
    )
    rows = lines(out)
    assert status == 0
    assert [(row["id"], row["sample_index"]) for row in rows] == [
        ("prompt-1", 0),
        ("prompt-1", 1),
        ("prompt-2", 0),
        ("prompt-2", 1),
    ]
    assert all(len(row["tokens"]) == len(row["step_map"]) == len(row["logprobs"]) == 6 for row in rows)
    assert all(row["sampler"] == "random" and row["temperature"] == 1.0 for row in rows)


def test_generate_for_a_person_shows_prompt_answer_and_effort(unmask, small_model):
    status, out, _ = unmask("generate", "--model", small_model, "--prompt", "1+1=", "--max-new-tokens", 3)
    assert status == 0
    assert "prompt-1  1+1=" in out
    assert "in 3 forwards" in out


def test_prompt_file_sets_sampler_and_seed_a_row_and_answers_do_not_depend_on_neighbours(unmask, small_model, tmp_path):
    row = {"id": "a", "prompt": "1+1=", "seed": 5, "sampler": "ar"}
    options = ("--model", small_model, "--max-new-tokens", 5, "--temperature", 1, "--json")
    alone = write_lines(tmp_path / "alone.jsonl", row)
    among = write_lines(tmp_path / "among.jsonl", {"prompt": "9*9="}, {"messages": [turn("hi")], "seed": 1}, row)
    _, out_alone, _ = unmask("generate", "--prompts", alone, *options)
    status, out_among, _ = unmask("generate", "--prompts", among, *options)
    assert status == 0
    rows = lines(out_among)
    assert [row["id"] for row in rows] == ["prompt-1", "prompt-2", "a"]
    assert rows[0]["sampler"] == "confidence"
    for field in ("tokens", "step_map", "seed", "sampler"):
        assert rows[2][field] == lines(out_alone)[0][field]


def test_options_of_the_sampler_reach_it(unmask, small_model):
    _, out, _ = unmask(
        "generate", "--model", small_model, "--prompt", "1", "--max-new-tokens", 6, "--json", "--set",
        "sampler.tokens_per_step=3",
    )  # fmt: skip
    assert lines(out)[0]["num_forwards"] == 2


def test_eval_prints_a_table_and_writes_json(unmask, small_model, tmp_path):
    file = tmp_path / "eval.json"
    status, out, _ = unmask(
        "eval", "--model", small_model, "--task", "arithmetic,countdown", "--sampler", "ar,random", "--limit", 3,
        "--num-samples", 2, "--k", "1,2", "--max-new-tokens", 4, "--json", file,
    )  # fmt: skip
    assert status == 0
    assert "pass@1" in out
    assert "pass@2" in out
    record = json.loads(file.read_text())
    assert [(result["task"], result["sampler"]) for result in record["results"]] == [
        ("arithmetic", "ar"),
        ("arithmetic", "random"),
        ("countdown", "ar"),
        ("countdown", "random"),
    ]
    first = record["results"][0]
    assert first["num_rows"] == 3
    assert first["temperature"] == 1.0  # several samples are drawn, not all the same
    assert set(first["pass_at"]) == {"1", "2"}


def test_eval_reads_test_rows_of_a_task_from_a_file(unmask, small_model, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", {"input": "1+1", "output": "2"}, {"input": "3*3", "output": "9"})
    file = tmp_path / "eval.json"
    status, _, _ = unmask(
        "eval", "--model", small_model, "--task", "arithmetic,countdown", "--test-file", f"arithmetic={rows}",
        "--limit", 4, "--max-new-tokens", 2, "--json", file,
    )  # fmt: skip
    assert status == 0
    assert [result["num_rows"] for result in json.loads(file.read_text())["results"]] == [2, 4]


def test_init_model_makes_a_model_that_can_write_its_texts(unmask, tmp_path):
    texts = write_lines(
        tmp_path / "texts.jsonl", {"question": "How many légumes?", "answer": "7 légumes\n#### 7", "n": 3}
    )
    folder = tmp_path / "model"
    status, out, _ = unmask("init-model", "--tokenizer-from", texts, "--out", folder, "--width", 32, "--layers", 1)
    assert status == 0
    assert "untrained llada model" in out
    status, out, _ = unmask("generate", "--model", folder, "--prompt", "légumes €", "--max-new-tokens", 2, "--json")
    assert status == 0
    again, _, error = unmask("init-model", "--tokenizer-from", texts, "--out", folder)
    assert again == 2
    assert "holds a model already" in error


def test_init_model_without_texts_has_a_token_a_character(unmask, tmp_path):
    folder = tmp_path / "model"
    status, _, _ = unmask("init-model", "--out", folder, "--width", 48, "--layers", 1, "--heads", 2)
    assert status == 0
    made, tiny = models.load(folder), models.load("tiny")
    assert made.backbone.config.hidden_size == 48
    assert models.encode_prompt(made, "1+2=") == models.encode_prompt(tiny, "1+2=")


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for arguments in (["--debug", "train", "no.yaml"], ["train", "no.yaml", "--debug"]):
        with pytest.raises(ValueError, match="no such recipe"):
            main(arguments)


def test_bench_names_the_benchmarks_that_there_are(unmask):
    status, _, error = unmask("bench", "no-such-thing")
    assert status == 2
    assert "no benchmark is named 'no-such-thing'" in error


def test_ui_without_a_store_says_so(unmask, tmp_path):
    status, _, error = unmask("ui", "--runs-dir", tmp_path)
    assert status == 2
    assert "mlflow.db is not there: train first" in error


def test_ui_refuses_a_port_that_is_taken(unmask, tmp_path):
    import socket

    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, error = unmask("ui", "--runs-dir", tmp_path, "--port", taken.getsockname()[1])
    assert status == 2
    assert "give another --port" in error


def test_console_script_exits_with_the_status():
    done = subprocess.run(
        [sys.executable, "-c", "from cluster.cli import main; main()", "train", "no.yaml", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no.yaml: no such recipe")
    assert "Traceback" not in done.stderr


def turn(content):
    return {"role": "user", "content": content}


def test_resume_auto_is_another_spelling_of_resume(unmask, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("tasks: [{name: arithmetic}]\n")
    status, out, _ = unmask("train", recipe, "--resume=auto", "--dry-run")
    assert status == 0
    assert "staleness" in out
