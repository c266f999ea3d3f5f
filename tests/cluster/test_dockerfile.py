"""The Dockerfile is not built in these tests; what it names must exist, and its rules are checked."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMANDS = {"ARG", "FROM", "SHELL", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


def instructions():
    """Command and arguments of every instruction, continued lines joined, comments left out."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages():
    """Instructions of every stage by its name, those of the stages it starts from included."""
    found, name = {}, None
    for command, arguments in instructions():
        if command == "FROM":
            parent, _, name = arguments.partition(" AS ")
            found[name] = list(found.get(parent, []))
        elif name is not None:
            found[name].append((command, arguments))
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_targets_end_as_an_ordinary_user_with_our_command(target):
    last = dict(stages()[target])
    user, _, group = last["USER"].partition(":")
    assert user.isdigit()
    assert group.isdigit()
    assert int(user) > 0
    assert last["ENTRYPOINT"] == '["unmask"]'
    assert last["WORKDIR"] == "/app"


def test_only_known_instructions_and_no_secret_are_used():
    assert {command for command, _ in instructions()} <= COMMANDS
    assert not re.search(r"(TOKEN|PASSWORD|SECRET|API_KEY)\s*=", (REPOSITORY / "Dockerfile").read_text())


def test_what_is_copied_exists_and_what_should_stay_out_does():
    for command, arguments in instructions():
        if command == "COPY":
            *sources, _ = [word for word in shlex.split(arguments) if not word.startswith("--")]
            assert all((REPOSITORY / source).exists() for source in sources), sources
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_installs_the_projects_packages_and_the_sandbox(target):
    text = " ".join(arguments for command, arguments in stages()[target] if command == "RUN")
    assert "pip install -r /tmp/requirements.txt" in text
    assert "pip install --no-deps -e ." in text
    assert "bubblewrap" in text
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert any(re.fullmatch(r"torch==[\d.]+", requirement) for requirement in project["dependencies"])
    assert "unmask" in project["scripts"]


def test_the_line_that_reads_the_requirements_reads_them(tmp_path):
    import subprocess
    import sys

    text = " ".join(arguments for command, arguments in stages()["base"] if command == "RUN")
    code = re.search(r'python -c "(.*?)"', text).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, text=True, capture_output=True)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert done.stdout.splitlines() == project["dependencies"]


def test_python_of_the_image_is_one_the_project_supports():
    base = next(arguments for command, arguments in instructions() if command == "ARG")
    minor = int(re.search(r"python:3\.(\d+)", base).group(1))
    supported = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", supported).groups())
    assert low <= minor < high
