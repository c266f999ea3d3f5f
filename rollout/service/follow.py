"""Weights of a training run, taken over as they are published, without a pause for the requests under way.

A run publishes whole checkpoints: `RUN/checkpoints/step_000100/`, which appears under its name only when it is complete
(`state.json` is written last). The step is the version of the weights. The new ones are read beside the old ones and
copied into the model between two denoising steps; sequences under way go on with them, and their answers say so:
`weights_version` has the first and the last. A checkpoint that cannot be read, or is not of this model, leaves the old
weights in place and is told in the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.service.host import ModelHost

if TYPE_CHECKING:
    from models import Denoiser

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d{6,})")


def newest(run: Path) -> tuple[int, Path] | None:
    """Version and model folder of the newest complete checkpoint of a run."""
    found = [
        (int(match[1]), path / "model")
        for path in (run / "checkpoints").glob("step_*")
        if (match := _STEP.fullmatch(path.name)) and (path / "state.json").exists() and (path / "model").is_dir()
    ]
    return max(found, default=None)


def copy_weights(source: Denoiser, target: Denoiser) -> None:
    """Copy every parameter, completely or not at all. Raises ValueError where the models differ."""
    import torch

    theirs, ours = (dict(model.backbone.named_parameters()) for model in (source, target))
    if theirs.keys() != ours.keys() or any(theirs[name].shape != ours[name].shape for name in ours):
        raise ValueError("the checkpoint's parameters are not those of the served model")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])


class Follower:
    """Keeps one served model at the newest version of a run."""

    def __init__(self, host: ModelHost, name: str, run: Path, *, period_s: float = 5.0) -> None:
        self._host, self._name, self._run, self._period_s = host, name, run, period_s
        self._seen = -1
        self.failures = 0
        """Checkpoints that could not be taken over."""

    async def run(self) -> None:
        """Look for a newer version again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._period_s)

    async def look(self) -> bool:
        """Take over the newest version if it is a new one; whether it was."""
        found = await asyncio.to_thread(newest, self._run)
        if found is None or found[0] <= self._seen:
            return False
        self._seen, path = found
        try:
            served = await self._host.served(self._name)
            fresh = await asyncio.to_thread(self._host.read, str(path))
            version = self._seen
            await served.loop.call(lambda engine: engine.update_weights(lambda old: copy_weights(fresh, old), version))
        except (ValueError, OSError, RuntimeError) as error:
            self.failures += 1
            logger.warning("version %d of %s is not taken over: %s", self._seen, self._run, error)
            return False
        logger.info("%s serves version %d of %s", self._name, self._seen, self._run)
        return True
