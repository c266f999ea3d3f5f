"""Bulk generation: every prompt answered exactly once, whatever was interrupted, killed or torn on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.answer_file import AnswerFile, journal_of
from cluster.bulk import BulkRun, generate_bulk
from cluster.bulk_progress import PlainProgress
from cluster.cli import main
from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.generate import read_prompts
from cluster.terminal import console
from models.config import ModelConfig
from rollout.config import RolloutConfig

ROOT = Path(__file__).parents[2]
ROWS = (
    {"id": "a", "prompt": "1+1="},
    {"id": "b", "prompt": "2+2=", "seed": 5},
    {"id": "c", "messages": [{"role": "user", "content": "hi"}], "sampler": "ar"},
    {"id": "d", "prompt": "9*9=", "seed": 6, "sampler": "confidence"},
    {"id": "e", "prompt": "31-1="},
)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture
def status_of(capsys):
    """Runs a command; gives exit status, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


def bulk_run(folder, *, seed=0, **rollout):
    settings = {"num_samples": 2, "max_new_tokens": 4, "temperature": 1.0} | rollout
    return BulkRun(ModelConfig(path=str(folder)), RolloutConfig(**settings), seed, ClusterConfig(mode="local"))


def interrupt_after(count):
    """Hears of answered prompts; breaks off once there are `count`, after the call that tells what was kept."""
    heard = []

    def answered(more):
        heard.append(more)
        if sum(heard) >= count:
            raise KeyboardInterrupt

    return answered


def test_file_holds_what_the_command_prints_without_a_pool(status_of, small_model, prompts, tmp_path):
    options = ("--model", small_model, "--prompts", prompts, "--num-samples", 2, "--max-new-tokens", 4)
    options += ("--temperature", 1, "--seed", 3)
    _, printed, _ = status_of("generate", *options, "--json")
    out = tmp_path / "answers.jsonl"
    status, _, told = status_of("generate", *options, "--out", out, "--ray-address", "none", "--num-workers", 2)
    assert status == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        json.loads(line) for line in printed.splitlines()
    ]
    assert "prompts 5/5" in told
    assert f"{out}: 5 prompts; 10 answers in" in told
    assert not journal_of(out).exists()


@pytest.mark.ray
def test_two_ray_workers_give_the_same_file_as_one_process(small_model, prompts, tmp_path, local_ray):
    rows = read_prompts(prompts)
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    generate_bulk(bulk_run(small_model), rows, here)
    run = bulk_run(small_model, num_workers=2)
    summary = generate_bulk(BulkRun(run.model, run.rollout, run.seed, ClusterConfig(mode="ray")), rows, there)
    assert (summary.num_prompts, summary.num_answers, summary.num_kept) == (5, 10, 0)
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_interrupted_run_goes_on_where_it_stopped(small_model, prompts, tmp_path, count):
    rows, run = read_prompts(prompts), bulk_run(small_model)
    straight, out = tmp_path / "straight.jsonl", tmp_path / "answers.jsonl"
    generate_bulk(run, rows, straight)
    with pytest.raises(KeyboardInterrupt):
        generate_bulk(run, rows, out, answered=interrupt_after(count))
    assert not out.exists()
    summary = generate_bulk(run, rows, out, resume=True)
    assert (summary.num_kept, summary.num_answers) == (count, 2 * (5 - count))
    assert out.read_bytes() == straight.read_bytes()
    again = generate_bulk(run, rows, out, resume=True)
    assert (again.num_kept, again.num_answers) == (5, 0)
    assert out.read_bytes() == straight.read_bytes()


def test_torn_line_is_made_again_and_leaves_no_trace(small_model, prompts, tmp_path):
    rows, run = read_prompts(prompts), bulk_run(small_model)
    straight, out = tmp_path / "straight.jsonl", tmp_path / "answers.jsonl"
    generate_bulk(run, rows, straight)
    with pytest.raises(KeyboardInterrupt):
        generate_bulk(run, rows, out, answered=interrupt_after(3))
    journal_of(out).write_bytes(journal_of(out).read_bytes()[:-20])
    assert generate_bulk(run, rows, out, resume=True).num_kept == 2
    assert out.read_bytes() == straight.read_bytes()


def test_prompts_added_changed_and_reordered_since_are_told_apart(small_model, prompts, tmp_path):
    run, out = bulk_run(small_model), tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate_bulk(run, read_prompts(prompts), out, answered=interrupt_after(5))
    new = [{"id": "f", "prompt": "7"}, ROWS[4], ROWS[0] | {"prompt": "1+2="}, ROWS[1]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in new))
    summary = generate_bulk(run, read_prompts(prompts), out, resume=True)
    # e and b are kept; f is new and a asks something else
    assert (summary.num_prompts, summary.num_kept, summary.num_answers) == (4, 2, 4)
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert ids == ["f", "f", "e", "e", "a", "a", "b", "b"]


def test_other_settings_than_those_begun_with_are_refused_by_name(small_model, prompts, tmp_path):
    rows, out = read_prompts(prompts), tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate_bulk(bulk_run(small_model), rows, out, answered=interrupt_after(1))
    with pytest.raises(
        ValueError, match=r"begun with other settings: seed was 0, now 1; temperature was 1\.0, now 0\.5"
    ):
        generate_bulk(bulk_run(small_model, seed=1, temperature=0.5), rows, out, resume=True)
    # more workers are no other question
    assert generate_bulk(bulk_run(small_model, num_workers=3), rows, out, resume=True).num_kept == 1


def test_what_is_there_already_is_never_overwritten(small_model, prompts, tmp_path):
    rows, out = read_prompts(prompts), tmp_path / "answers.jsonl"
    run = bulk_run(small_model)
    with pytest.raises(KeyboardInterrupt):
        generate_bulk(run, rows, out, answered=interrupt_after(1))
    with pytest.raises(ValueError, match=r"answers\.jsonl\.partial holds the answers of a run that was not finished"):
        generate_bulk(run, rows, out)
    generate_bulk(run, rows, out, resume=True)
    with pytest.raises(ValueError, match=r"answers\.jsonl exists; give another --out"):
        generate_bulk(run, rows, out)
    with pytest.raises(ValueError, match="is finished, with answers of other prompts or settings"):
        generate_bulk(bulk_run(small_model, seed=1), rows, out, resume=True)


def test_two_processes_cannot_write_one_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with (
        AnswerFile(path, {}, resume=True),
        pytest.raises(ValueError, match="being written by another process"),
        AnswerFile(path, {}, resume=True),
    ):
        pass


def test_prompt_without_an_answer_keeps_the_file_away_and_the_others_safe(small_model, prompts, tmp_path):
    # The small model has two layers, so that only the rows with a sampler of their own can be answered.
    run = bulk_run(small_model, sampler={"name": "max_s", "options": {"layers": [99]}})
    out = tmp_path / "answers.jsonl"
    with pytest.raises(RunError, match=r"3 prompts have no answer") as caught:
        generate_bulk(run, read_prompts(prompts), out)
    assert "a: rollout-0.generate: raised" in str(caught.value)
    assert not out.exists()
    kept = [json.loads(line) for line in journal_of(out).read_text().splitlines()][1:]
    assert [line["answers"][0]["id"] for line in kept] == ["c", "d"]


def test_killed_process_loses_nothing(small_model, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{number}+1="}) + "\n" for number in range(1000)))
    command = [sys.executable, "-c", "from cluster.cli import main; main()", "generate", "--model", str(small_model)]
    command += ["--prompts", str(prompts), "--out", str(out), "--ray-address", "none", "--max-new-tokens", "24"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and num_lines(journal_of(out)) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists(), "it was done before it could be killed"
    num_kept = num_lines(journal_of(out)) - 1
    assert num_kept >= 1
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert f"{num_kept} prompts kept from before" in done.stderr
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert ids == [f"prompt-{number}" for number in range(1, 1001)]


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--resume"], "--resume is for a pool of workers; give --out FILE.jsonl too"),
        (["--num-workers", 2, "--timeout", 5], "--num-workers and --timeout is for a pool"),
        (["--out", "no/such/folder/a.jsonl"], "there is no folder"),
        (["--out", "answers.jsonl", "--max-new-tokens", 9999], "line 1: prompt 'a' has 4 tokens and max_new_tokens is"),
        (["--out", "answers.jsonl", "--cache", "block"], "block"),
        (["--out", "answers.jsonl", "--model", "no/where/else"], "no such folder"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    status_of, small_model, prompts, monkeypatch, arguments, expected
):
    monkeypatch.chdir(prompts.parent)
    status, _, told = status_of("generate", "--prompts", prompts, "--model", small_model, *arguments)
    assert status == 2
    assert expected in told
    assert not Path("answers.jsonl.partial").exists()


def test_plain_progress_says_how_far_it_is_and_how_long_it_takes(capsys):
    progress = PlainProgress(console(stderr=True), 4, every_s=0.0)
    for count in (1, 1, 2):
        progress(count)
    shown = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["prompts 1/4", "prompts 2/4", "prompts 4/4"]
    seldom = PlainProgress(console(stderr=True), 4, every_s=1e9)
    for count in (0, 1, 1, 1, 1):
        seldom(count)
    shown = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["prompts 0/4", "prompts 4/4"]
