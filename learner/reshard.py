"""Checkpoints of another number of ranks: DeepSpeed's shards put together, so that any number can take its own.

DeepSpeed's converter writes each parameter's master weights and moments whole, and an engine that was built for it
(`LearnerEngine(..., reads_whole_state=True)`) cuts them anew. What comes out is the saved state to the last bit; sums
over another number of ranks round otherwise from there on. The host of rank 0 reads every shard meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

from learner.checkpoint import PARTIAL_SUFFIX, CheckpointError


def whole_folder(path: Path) -> Path:
    """Where the state of the checkpoint `path` lies while it is whole; pruned if its maker is killed."""
    return path.with_name(f"{path.name}.whole{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def whole_state(path: Path, *, tag: str) -> Iterator[None]:
    """Puts the shards of `path`/optimizer together in `whole_folder(path)` for the body."""
    folder = whole_folder(path)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / tag).mkdir(parents=True)
    try:
        _convert(path / "optimizer" / tag, folder / tag)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(shards: Path, whole: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    settings = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(whole),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # ZeRO 1 and 2 leave a version mark to whoever saves
    )
    try:
        # Its prints and progress bars belong to a command line.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the shards in {shards} could not be put together for another number of ranks: {error!r}\n"
            f"Resume with the number of ranks that saved them, or start a new run from {shards.parents[1] / 'model'}"
        ) from error
