"""Runs in which processes are killed at chosen moments, for real: SIGKILL to the process, at the start of a stage.

`python -m tests.chaos.monkey SETTINGS.json` is such a run as a process of its own, so that its driver can be killed
too. Settings: `recipe`, `resume`, `kills`, `real` (engines with a model, else `benchmarks.sketch`), `record`.
"""

import json
import os
import random
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from benchmarks.sketch import SketchRank, SketchWorker, read
from cluster.calls import ActorInfo
from cluster.checkpointing import newest
from cluster.config import TrainRecipe
from cluster.logs import log_file
from cluster.loop import train
from cluster.run_folder import open_run_folder
from cluster.stopwatch import Stopwatch
from cluster.train_run import Engines, assemble, check
from learner import checkpoint
from reward.tasks import build

VICTIMS = ("rollout", "grader", "jail", "learner", "driver", "raylet")
STAGES = ("generate", "reward", "update", "publish", "sync", "checkpoint", "evaluate")
SKETCH = Engines(worker=SketchWorker, rank=SketchRank)


@dataclass(frozen=True)
class Kill:
    """One process killed once."""

    victim: str
    stage: str
    step: int
    """Steps done when it happens."""
    delay_s: float = 0.0
    """After the stage began."""
    signal: int = signal.SIGKILL


class Monkey(Stopwatch):
    """A stopwatch that kills; `record` gets a line for each kill, just before it."""

    def __init__(self, run, kills, record=None):
        super().__init__(run.watch._spans)
        self._run, self._left, self._record = run, list(kills), record
        self.done = []

    def stage(self, name):
        for kill in [kill for kill in self._left if (kill.stage, kill.step) == (name, self._run.step)]:
            self._left.remove(kill)
            if kill.delay_s:
                timer = threading.Timer(kill.delay_s, self._kill, [kill])
                timer.daemon = True
                timer.start()
            else:
                self._kill(kill)
        return super().stage(name)

    def _kill(self, kill):
        found = self._victims(kill.victim)
        if not found:
            return
        if self._record:
            with self._record.open("a") as file:
                file.write(json.dumps(asdict(kill)) + "\n")
        with suppress(ProcessLookupError):
            os.kill(random.Random(repr(kill)).choice(found), kill.signal)
            self.done.append(kill)

    def _victims(self, kind):
        """Process ids, in the same order in every run."""
        if kind == "driver":
            return [os.getpid()]
        if kind == "raylet":
            return second_raylets()
        if kind == "learner":
            return alive(self._run.learner._ranks)
        pool = self._run.rollouts if kind == "rollout" else self._run.graders
        pids = alive([member.handle for member in pool._members if not member.is_gone])
        return sorted(below(pids)) if kind == "jail" else pids


def alive(handles):
    """Their processes, of those that answer."""
    found = [handle.health(timeout_s=5) for handle in handles]
    return [info.pid for info in found if isinstance(info, ActorInfo)]


def below(roots):
    """All descendants of these processes."""
    children = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(folder.name))
    found, left = [], list(roots)
    while left:
        found += (of_one := children.get(left.pop(), []))
        left += of_one
    return found


def second_raylets():
    """The raylets of this cluster but the head's."""
    address, found = ray.get_runtime_context().gcs_address, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_text().split("\0")
            if words[0].endswith("/raylet") and "--head" not in words and any(address in word for word in words):
                found.append(int(folder.name))
    return sorted(found)


def run_with(recipe, *, kills=(), resume=False, engines=SKETCH, record=None):
    """The run as `run_train` does it; returns its parts once all steps are done, and the kills that hit somebody."""
    check(recipe)
    folder = open_run_folder(recipe, resume=resume)
    start = newest(folder.checkpoints, recipe) if resume else None
    with log_file(folder.log_dir, "driver"), ExitStack() as stack:
        run = assemble(recipe, folder, [build(config) for config in recipe.tasks], start, stack, engines)
        run.watch = Monkey(run, kills, record)
        train(run)
        return run, run.watch.done


def outcome(run_dir):
    """Weights and ledger of the newest checkpoint of a run."""
    return read(checkpoint.latest(Path(run_dir) / "checkpoints"))


def settings(path, recipe, *, kills=(), resume=False, real=False, record=None):
    """File of a run in a process of its own, and the command that runs it."""
    content = {
        "record": record and str(record),
        "recipe": recipe.model_dump(mode="json"),
        "resume": resume,
        "kills": [asdict(kill) for kill in kills],
        "real": real,
    }
    path.write_text(json.dumps(content))
    return [sys.executable, "-m", "tests.chaos.monkey", str(path)]


def main(path):
    given = json.loads(Path(path).read_text())
    kills = [Kill(**kill) for kill in given["kills"]]
    recipe = TrainRecipe.model_validate(given["recipe"])
    engines = Engines() if given["real"] else SKETCH
    record = given["record"] and Path(given["record"])
    run, done = run_with(recipe, kills=kills, resume=given["resume"], engines=engines, record=record)
    print(json.dumps({"steps": run.step, "kills": [asdict(kill) for kill in done]}))


if __name__ == "__main__":
    main(sys.argv[1])
