"""Which Python the programs run on, and what of the host it may read."""

import os
import sys
from pathlib import Path

import pytest

from reward.sandbox import interpreter as module
from reward.sandbox.interpreter import find_interpreter, readable_by_all
from reward.sandbox.records import JobEnd, Unavailable


def test_programs_run_on_the_version_that_this_process_runs_on(run):
    assert run("import sys; print(sys.version_info[:3])")[:2] == (JobEnd.FINISHED, f"{sys.version_info[:3]}\n")


def test_installed_packages_are_not_there(run):
    end, _, words = run("import pydantic")
    assert end is JobEnd.CRASHED
    assert "ModuleNotFoundError" in words


def test_paths_do_not_overlap_and_exist():
    paths = find_interpreter(None, None).read_paths
    assert all(os.path.exists(path) for path in paths)
    assert not any(a != b and b.startswith(f"{a}/") for a in paths for b in paths)
    assert not {"/", "/etc", "/root", "/home"} & set(paths)


def test_file_below_a_closed_folder_is_not_readable_by_all(tmp_path):
    base = Path("/") if os.geteuid() == 0 else tmp_path
    file = tmp_path / "closed" / "file"
    file.parent.mkdir()
    file.write_text("x")
    file.chmod(0o644)
    file.parent.chmod(0o700)
    assert not readable_by_all(file)
    assert readable_by_all(base) or base is tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps a copy for other users")
def test_root_keeps_a_copy_where_others_cannot_reach_its_python(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COPIES", tmp_path / "copies")
    monkeypatch.setattr(module, "_reachable", lambda facts, path: False)
    first = find_interpreter(None, 12_345)
    made = os.stat(first.path).st_ino
    assert Path(first.path).is_relative_to(tmp_path / "copies")
    assert "site-packages" not in {path.name for path in Path(first.path).parents[1].rglob("*")}
    assert find_interpreter(None, 12_345) == first
    assert os.stat(first.path).st_ino == made
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [Path(first.path).parents[1].name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps a copy for other users")
def test_copy_that_cannot_be_made_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(module, "COPIES", tmp_path / "file" / "copies")
    monkeypatch.setattr(module, "_reachable", lambda facts, path: False)
    with pytest.raises(Unavailable, match="set `python` of the sandbox to an interpreter that everybody may run"):
        find_interpreter(None, 12_345)
