"""Answers and graded groups as JSON, and back, to the last bit: arrays as base64 of their bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from rollout.records import Failed, Group, Prompt, Score, Scored, Trajectory


def write_group(group: Group) -> dict[str, Any]:
    """A group as JSON can hold it."""
    return {
        "prompt": asdict(group.prompt),
        "answers": [write(trajectory) for trajectory in group.trajectories],
        "scores": [asdict(score) for score in group.scores],
    }


def read_group(record: Mapping[str, Any]) -> Group:
    """The group again."""
    prompt = dict(record["prompt"])
    if prompt["messages"] is not None:
        prompt["messages"] = tuple(prompt["messages"])
    return Group(
        Prompt(**prompt), [read(one) for one in record["answers"]], [_score(score) for score in record["scores"]]
    )


def _score(record: Mapping[str, Any]) -> Score:
    return Scored(**record) if "value" in record else Failed(**record)


def write(trajectory: Trajectory) -> dict[str, Any]:
    """An answer as JSON can hold it, every bit of its arrays kept."""
    return {field.name: _plain(getattr(trajectory, field.name)) for field in fields(Trajectory)}


def read(record: Mapping[str, Any]) -> Trajectory:
    """The answer again."""
    values = {name: _value(entry) for name, entry in record.items()}
    return Trajectory(**values | {"weights_version": tuple(values["weights_version"])})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": value.shape, "data": data}
    return {name: _plain(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value


def _value(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    if set(entry) == {"dtype", "shape", "data"}:
        flat = np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"])
        return flat.reshape(entry["shape"]).copy()
    return {name: _value(one) for name, one in entry.items()}
