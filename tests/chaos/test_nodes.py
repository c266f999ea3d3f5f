"""A machine is lost with all that is on it, at every stage of a run; another one joins a while later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 900


@pytest.mark.slow
def test_the_second_machine_may_be_lost_at_any_stage():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = ["--only", "raylet", "--kills", "7", "--per-run", "7", "--steps", "14"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.campaign", *words],
        cwd=REPOSITORY,
        env=kept,
        check=False,
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "same weights and ledger" in done.stdout
