"""Answers of an evaluation on disk, so that one that was interrupted goes on where it stopped.

A JSONL file with a line a chunk of prompts: `{"key": ..., "answers": [[trajectory, ...], ...]}`. The key is a hash of
everything that the answers follow from, so a line serves nothing but the same question; a torn line is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.answer_record import read, write
from cluster.line_file import LineFile, read_lines
from models.config import ModelConfig
from rollout.config import DecodingConfig
from rollout.records import Prompt, Trajectory

Answers = list[list[Trajectory]]


class KeptAnswers:
    """Chunks of answers by what they follow from."""

    def __init__(self, path: Path, model: ModelConfig) -> None:
        self.path = path
        self._model = [model.model_dump(mode="json"), _age(Path(model.path))]
        self._known = {
            line["key"]: line["answers"] for line in read_lines(path) if line is not None and "answers" in line
        }
        self._file = LineFile(path)

    def key(self, prompts: Sequence[Prompt], num_samples: int, seed: int, decoding: DecodingConfig) -> str:
        """Hash of everything that the answers follow from."""
        asked = [[prompt.id, prompt.text, prompt.messages] for prompt in prompts]
        question = [self._model, asked, num_samples, seed, decoding.model_dump(mode="json")]
        return hashlib.blake2b(json.dumps(question, sort_keys=True, default=dict).encode(), digest_size=16).hexdigest()

    def find(self, key: str) -> Answers | None:
        """The answers kept under this key."""
        if key not in self._known:
            return None
        return [[read(record) for record in records] for records in self._known[key]]

    def keep(self, key: str, answers: Answers) -> None:
        """Put answers on disk."""
        self._file.append({"key": key, "answers": [[write(one) for one in row] for row in answers]})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _age(model: Path) -> list[Any]:
    """Names and times of a folder's weights; nothing for a model that is not a folder."""
    return sorted((file.name, file.stat().st_mtime_ns) for file in model.glob("*.safetensors"))
