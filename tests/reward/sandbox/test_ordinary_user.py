"""The same promises where the service is no root: these tests run again as an ordinary user.

That user may not be able to read the project or this Python, so what is needed is copied to where it can.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from reward.sandbox.interpreter import find_interpreter
from reward.sandbox.users import slot_uid

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    *("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),
    *("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"),
)
AGAIN = (
    *("canary_holds", "dangerous", "cannot_get_at", "bomb", "eight_slots", "leaves_no_process", "left_job"),
    *("threads_up_to", "asyncio", "private_folder"),
)


@pytest.fixture
def stage():
    """A folder that everybody can read, with the sandbox, its tests and what they import."""
    with tempfile.TemporaryDirectory(prefix="unmask-test-") as folder:
        os.chmod(folder, 0o755)
        for part in ("reward/__init__.py", "reward/sandbox", "tests/reward/sandbox"):
            copy(ROOT / part, Path(folder) / part)
        for name in PACKAGES:
            origin = Path(importlib.util.find_spec(name).origin)
            copy(origin.parent if origin.name == "__init__.py" else origin, Path(folder), keep_name=True)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        (Path(folder) / "work").mkdir()
        os.chmod(Path(folder) / "work", 0o777)
        yield Path(folder)


def copy(source, target, *, keep_name=False):
    target = target / source.name if keep_name else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; as an ordinary user, all tests do it")
def test_promises_hold_for_a_service_that_is_no_root(stage):
    uid = slot_uid()
    if uid is None:
        pytest.skip("this user namespace has no other user")
    python = find_interpreter(None, uid)
    command = [python.path, "-B", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += ["-c", "/dev/null", "--rootdir", str(stage), "-k", " or ".join(AGAIN), "tests/reward/sandbox"]
    # Not by `user=`: that copies the address space of a test process that may have grown beyond the machine's memory.
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    done = subprocess.run(
        become + command,
        cwd=stage,
        env={**python.environment, "PYTHONPATH": str(stage), "PATH": os.environ["PATH"], "TMPDIR": str(stage / "work")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "this host cannot have" not in done.stdout, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 60
