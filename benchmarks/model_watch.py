"""How much of a run is spent inside the model: backbone layers and vocabulary head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import models
from models.stack import Stack

_ENTRIES: tuple[tuple[type, str], ...] = (
    (models.Denoiser, "hidden"),
    (models.Denoiser, "head"),
    (Stack, "start"),
    (Stack, "finish"),
)


class ModelWatch:
    """Adds up the seconds between going into the model and coming out of it."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._depth = 0
        self.inside_s = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, every way into the model is timed, in this process."""
        originals = [(owner, name, getattr(owner, name)) for owner, name in _ENTRIES]
        for owner, name, original in originals:
            setattr(owner, name, self._timed(original))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return original(*args, **kwargs)
            self._depth += 1
            start = self._clock()
            try:
                return original(*args, **kwargs)
            finally:
                self.inside_s += self._clock() - start
                self._depth -= 1

        return timed
