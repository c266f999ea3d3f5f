"""The direction of imports between rooms, and where Ray may appear."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("samplers", "models", "rollout", "reward", "learner", "cluster")
MAY_IMPORT = {
    "samplers": (),
    "models": (),
    "rollout": ("models", "samplers"),
    "reward": ("rollout.records",),
    "learner": ("models", "rollout.records", "samplers.policy"),
    "cluster": ROOMS,
}
RAY_FILES = {
    "rollout/worker.py",
    "reward/worker.py",
    "reward/sandbox/gvisor.py",
    "learner/worker.py",
    "rollout/serve.py",
    "learner/unmasking_policy.py",
}


def imported(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, in functions too: `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def may_import(room: str, name: str) -> bool:
    allowed = (room, *MAY_IMPORT[room])
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_the_rooms_below_it(room):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(room)
        for name in imported(path)
        if name.split(".")[0] in ROOMS and not may_import(room, name)
    ]
    assert wrong == []


def test_ray_is_imported_in_cluster_and_in_the_thin_actor_files_only():
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        if room != "cluster"
        for path in files_of(room)
        if any(name.split(".")[0] == "ray" for name in imported(path)) and str(path.relative_to(ROOT)) not in RAY_FILES
    ]
    assert wrong == []


def test_private_parts_of_ray_are_imported_nowhere():
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in files_of(room)
        for name in imported(path)
        if name.startswith("ray._") or "._private" in name
    ]
    assert wrong == []


def test_settings_and_help_load_without_torch_and_ray():
    heavy = ("torch", "transformers", "ray", "deepspeed", "mlflow", "numpy")
    code = (
        "import sys, cluster.cli; light = set(sys.modules); import cluster.recipe; "
        f"print([m for m in {heavy} if m in light], [m for m in {heavy[:5]} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_help_loads_no_configuration():
    code = "import sys, cluster.cli; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
