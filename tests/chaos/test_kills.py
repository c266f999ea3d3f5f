"""Kill any process at any stage: same number of steps, every prompt trained once, the weights of an undisturbed run."""

import signal
import subprocess
from collections import Counter

import numpy as np
import pytest

from cluster.stop_signal import STATUS
from cluster.tracking import read_metrics
from learner import checkpoint
from reward.code.config import CodeConfig
from reward.code.grader import CodeGrader
from reward.sandbox.records import NoSandbox
from tests.chaos.monkey import Kill, outcome, run_with, settings

pytestmark = pytest.mark.ray
DEADLINE_S = 400


def assert_same(run_dir, undisturbed):
    """Weights to the last bit, and the ledger: which prompt was trained at which step, each once."""
    weights, ledger = outcome(run_dir)
    expected_weights, expected_ledger = undisturbed
    assert ledger == expected_ledger
    assert max(Counter(map(tuple, ledger)).values()) == 1
    np.testing.assert_array_equal(weights, expected_weights)


def failures(run_dir):
    totals = Counter()
    for row in read_metrics(run_dir):
        totals.update({name: value for name, value in row.items() if name.startswith("failure/")})
    return totals


def test_an_undisturbed_run_trains_every_prompt_once(undisturbed):
    _, ledger = undisturbed
    # 6 steps of 2 prompts of 3 answers
    assert len(ledger) == len({tuple(entry) for entry in ledger}) == 36
    assert len({prompt for _, prompt, _ in ledger}) == 12


def test_workers_graders_and_the_learner_may_die_at_any_stage(recipe, undisturbed):
    kills = [
        Kill("rollout", "generate", 0),
        Kill("grader", "reward", 1),
        Kill("learner", "update", 1),
        Kill("rollout", "sync", 2),
        Kill("learner", "publish", 3),
        Kill("learner", "checkpoint", 4),
        Kill("rollout", "update", 4),
        Kill("learner", "generate", 5),
    ]
    run, done = run_with(recipe("killed"), kills=kills)
    assert len(done) == len(kills)
    assert run.step == 6
    assert_same(run.folder.path, undisturbed)
    assert failures(run.folder.path)["failure/learner_actor_lost"] >= 3


@pytest.fixture(scope="module")
def has_sandbox():
    """Programs are never run without one."""
    grader = CodeGrader(CodeConfig())
    try:
        grader.open()
    except NoSandbox as error:
        pytest.skip(f"no sandbox works on this host: {error}")
    finally:
        grader.close()


def test_jails_may_die_while_programs_are_graded(recipe, has_sandbox):
    programs = {"tasks": [{"name": "code-tiny"}], "steps": 4}
    expected, _ = run_with(recipe("programs", **programs))
    kills = [
        Kill("jail", "reward", 0),
        Kill("jail", "generate", 1),
        Kill("jail", "reward", 2, delay_s=0.05),
        Kill("jail", "update", 3),
    ]
    run, done = run_with(recipe("jails", **programs), kills=kills)
    assert len(done) == len(kills)
    assert_same(run.folder.path, outcome(expected.folder.path))


def in_a_process(tmp_path, recipe, **given):
    command = settings(tmp_path / "settings.json", recipe, **given)
    return subprocess.run(command, timeout=DEADLINE_S, check=False, capture_output=True, text=True)


def test_a_killed_driver_resumes_with_nothing_lost_and_nothing_twice(recipe, tmp_path, undisturbed):
    killed = in_a_process(tmp_path, recipe("driver"), kills=[Kill("driver", "update", 3)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run, _ = run_with(recipe("driver"), resume=True)
    assert_same(run.folder.path, undisturbed)
    again, _ = run_with(recipe("driver"), resume=True)
    assert (again.step, again.folder.path) == (6, run.folder.path)
    assert_same(run.folder.path, undisturbed)


def test_sigterm_saves_the_last_whole_step_first(recipe, tmp_path, undisturbed):
    kill = Kill("driver", "update", 2, signal=signal.SIGTERM)
    stopped = in_a_process(tmp_path, recipe("stopped", checkpoint={"every": 0}), kills=[kill])
    assert stopped.returncode == STATUS, stopped.stderr
    run_dir = tmp_path / "stopped" / "chaos"
    # told to stop in the third update, which it finished
    assert checkpoint.latest(run_dir / "checkpoints").name == "step_000003"
    run_with(recipe("stopped"), resume=True)
    assert_same(run_dir, undisturbed)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(recipe, undisturbed, caplog):
    run, _ = run_with(recipe("damaged", steps=4))
    folder = run.folder.checkpoints
    weights = folder / "step_000004" / "model" / "weights.npy"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run, _ = run_with(recipe("damaged"), resume=True)
    assert "step_000004.damaged" in caplog.text
    assert (folder / "step_000004.damaged").is_dir()
    assert_same(run.folder.path, undisturbed)


@pytest.mark.slow
def test_with_staleness_one_every_prompt_is_trained_once_whoever_dies(recipe):
    kills = [Kill("rollout", "update", 1), Kill("learner", "update", 3), Kill("rollout", "update", 5)]
    objective = {"importance": "token"}
    engine = {"micro_batch_tokens": 64, "cpus_per_rank": 0.1}
    stale = recipe("stale", staleness=1, learner={"objective": objective, "engine": engine})
    run, done = run_with(stale, kills=kills)
    assert len(done) == 3
    _, ledger = outcome(run.folder.path)
    assert len(ledger) == len({(prompt, sample) for _, prompt, sample in ledger}) == 36
    assert max(row.get("staleness/max", 0) for row in read_metrics(run.folder.path)) <= 1
