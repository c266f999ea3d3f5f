"""Small real workers and pools for the tests of this folder; a module of its own, so that actors can import it."""

import os
import time

import numpy as np

from cluster.calls import ActorSpec
from cluster.pool import WorkerPool
from rollout.records import Prompt, Trajectory


class Counter:
    """Adds, sleeps, fails and dies on request."""

    def __init__(self, start=0):
        if start < 0:
            raise ValueError(f"start is {start}; it must be at least 0")
        self.value = start

    def add(self, amount):
        self.value += amount
        return self.value

    def square_all(self, items):
        """-1 is bad data; 13 kills the first process that sees it, and the marker file tells the next one."""
        for item in items:
            if item == -1:
                raise ValueError("-1 has no square here")
            if isinstance(item, tuple) and not os.path.exists(item[1]):
                open(item[1], "w").close()
                os._exit(1)
        return [(item[0] if isinstance(item, tuple) else item) ** 2 for item in items]

    def own_array(self, size):
        """Its own memory, which `overwrite` changes."""
        self.own = np.zeros(size, dtype=np.uint16)
        return self.own

    def overwrite(self):
        self.own[:] = 1

    def array(self, size):
        return {"weight": np.arange(size, dtype=np.uint16)}

    def total_of(self, array):
        return int(array.sum())

    def total(self, arrays):
        return int(sum(array.sum() for array in arrays.values()))

    def wait_for(self, path):
        until = time.monotonic() + 60
        while not os.path.exists(path):
            assert time.monotonic() < until, path
            time.sleep(0.01)
        return "seen"

    def nap(self, seconds):
        time.sleep(seconds)
        return "rested"

    def die(self):
        os._exit(1)

    def pid(self):
        return os.getpid()

    def ready(self):
        return "ready"


class SquarePool(WorkerPool):
    """Squares numbers."""

    def __init__(self, launcher, *, num_workers=2, max_retries=2, timeout_s=20, ready="ready"):
        specs = [ActorSpec(f"square-{index}", Counter) for index in range(num_workers)]
        super().__init__(specs, launcher, max_retries=max_retries)
        self._timeout_s = timeout_s
        self._ready = ready

    def _prepare(self, handle):
        return [handle.call("ready", timeout_s=self._timeout_s)]

    def _wrong_with(self, handle, answers):
        return "" if answers[-1] == self._ready else f"it says {answers[-1]!r}, not {self._ready!r}"

    def _call(self, handle, items):
        if items == ("nap",):
            return handle.call("nap", 60, timeout_s=0.5)
        return handle.call("square_all", items, timeout_s=self._timeout_s)

    def _results(self, items, value):
        return value


class InstantPool:
    """Ends every piece of work at the next `collect`, newest first, as `outcome(item)` says."""

    def __init__(self, outcome):
        self._outcome = outcome
        self._waiting = []
        self.asked = []

    def ask(self, asks):
        self.asked += asks
        self._waiting += asks

    submit = ask

    @property
    def num_pending(self):
        return len(self._waiting)

    def futures(self):
        return []

    def collect(self):
        ended = [(item, self._outcome(item)) for item in reversed(self._waiting)]
        self._waiting = []
        return ended

    def take_failures(self):
        return {}


def trajectory(prompt_id, sample_index=0, text="2", **fields):
    """An answer of two tokens in a canvas of three slots, denoised left to right."""
    values = {
        "tokens": np.array([5, 0, 0]),
        "step_map": np.array([0, 1, 2], dtype=np.int32),
        "logprobs": np.array([-0.5, -0.1, 0.0], dtype=np.float32),
        "entropies": np.array([0.5, 0.1, 0.0], dtype=np.float32),
        "num_steps": 2,
        "num_forwards": 2,
        "finish_reason": "eos",
        "answer_length": 1,
        "seed": sample_index,
        "sampler": "ar",
        "exact_likelihood": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "block_length": 3,
        "prompt_tokens": np.array([7, 8]),
        "prompt_id": prompt_id,
        "sample_index": sample_index,
        "text": text,
    }
    return Trajectory(**(values | fields))


class LetterTask:
    """Prompts `a/0`, `a/1`, ... of a task named by a letter."""

    def __init__(self, name, num_rows):
        self.name = name
        self._rows = [{"id": f"{name}/{index}"} for index in range(num_rows)]

    def rows(self, split):
        assert split == "train"
        return self._rows

    def prompt(self, row):
        return Prompt(id=row["id"], task=self.name, text="?", gold=row)
