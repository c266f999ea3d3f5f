"""What an evaluation leaves of each row, and samplers compared from that: over seeds, and at equal forwards.

R rows, n graded answers of a row, c of them right, f forwards an answer (candidates counted). Seeds are pooled row by
row: answers of other seeds are further independent answers to the same prompt, so n, c and the forwards add up, and
pass@k of the sum is unbiased. Intervals are 95 % percentile bootstraps over rows; the spread over seeds is beside them.

At equal forwards: k answers cost k f forwards, so a budget of b forwards a prompt buys b / f answers. Two samplers are
compared at 16 budgets, evenly spaced in the logarithm, from one answer of the dearer one to all answers of the cheaper
one; between whole k, pass@k is interpolated linearly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.statistics import Interval, bootstrap, paired, pass_at_k
from rollout.records import Group, Scored, Trajectory

NUM_BUDGETS = 16
SETTINGS = ("model", "dtype", "max_new_tokens", "block_length", "steps", "temperature", "top_p", "top_k", "cache")
"""What two results may differ in beside the sampler; those that differ become part of a name."""


@dataclass(frozen=True)
class Rows:
    """Counts of R rows, (R,) each."""

    ids: tuple[str, ...]
    graded: np.ndarray
    """int64. n."""
    right: np.ndarray
    """int64. c."""
    answers: np.ndarray
    """int64. Answers drawn, graded or not."""
    forwards: np.ndarray
    """int64. Forwards of all answers."""
    tokens: np.ndarray
    """int64. Tokens up to and including the first end token, of all answers."""

    @staticmethod
    def of(groups: Sequence[Group]) -> Rows:
        """Counts of graded groups."""
        scored = [[score for score in group.scores if isinstance(score, Scored)] for group in groups]
        return Rows(
            ids=tuple(group.prompt.id for group in groups),
            graded=_whole([len(scores) for scores in scored]),
            right=_whole([sum(score.parts["correct"] >= 1 for score in scores) for scores in scored]),
            answers=_whole([len(group.trajectories) for group in groups]),
            forwards=_whole([sum(t.num_forwards for t in group.trajectories) for group in groups]),
            tokens=_whole([sum(map(num_tokens, group.trajectories)) for group in groups]),
        )

    def numbers(self) -> dict[str, list[Any]]:
        """For JSON."""
        return {item.name: list(map(_value, getattr(self, item.name))) for item in fields(self)}

    @staticmethod
    def read(record: Mapping[str, Any]) -> Rows:
        """What `numbers` wrote."""
        counts = {item.name: _whole(record[item.name]) for item in fields(Rows) if item.name != "ids"}
        return Rows(ids=tuple(record["ids"]), **counts)

    def plus(self, other: Rows) -> Rows:
        """The same rows with the answers of both."""
        if self.ids != other.ids:
            raise ValueError(f"results of {len(self.ids)} and of {len(other.ids)} rows are not of the same rows")
        sums = {item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)[1:]}
        return Rows(self.ids, **sums)

    def take(self, ids: Sequence[str]) -> Rows:
        """The rows of these ids, in their order."""
        place = {row_id: index for index, row_id in enumerate(self.ids)}
        chosen = np.array([place[row_id] for row_id in ids], dtype=np.int64)
        return Rows(tuple(ids), **{item.name: getattr(self, item.name)[chosen] for item in fields(self)[1:]})

    def pass_at(self, k: int) -> np.ndarray:
        """pass@k of each row with at least k graded answers."""
        pairs = zip(self.graded.tolist(), self.right.tolist(), strict=True)
        return np.array([pass_at_k(n, c, k) for n, c in pairs if n >= k])


@dataclass(frozen=True)
class Arm:
    """One sampler with its settings on one task, over all seeds that were measured."""

    task: str
    sampler: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    """By the names of `SETTINGS`."""
    seeds: Mapping[int, Rows]
    label: str = ""

    @property
    def rows(self) -> Rows:
        """All seeds together."""
        first, *others = self.seeds.values()
        for other in others:
            first = first.plus(other)
        return first

    @property
    def forwards_per_answer(self) -> float:
        """f."""
        rows = self.rows
        return float(rows.forwards.sum() / rows.answers.sum())

    def largest_k(self) -> int:
        """The k that every graded row can estimate."""
        graded = self.rows.graded
        return int(graded[graded > 0].min()) if (graded > 0).any() else 0

    def pass_at(self, k: int) -> tuple[float, Interval]:
        """pass@k and its interval; nan where the answers are too few."""
        rows_R = self.rows.pass_at(k)
        interval = bootstrap(rows_R, np.ones_like(rows_R), np.random.default_rng(0))
        return (float(rows_R.mean()), interval) if len(rows_R) else (math.nan, interval)

    def over_seeds(self, k: int) -> list[float]:
        """pass@k of each seed alone; nan where a seed has too few answers."""
        per_seed = [rows.pass_at(k) for rows in self.seeds.values()]
        return [float(rows_R.mean()) if len(rows_R) else math.nan for rows_R in per_seed]

    def forwards(self) -> tuple[float, Interval]:
        """Forwards per answer and its interval."""
        rows = self.rows
        return self.forwards_per_answer, bootstrap(rows.forwards, rows.answers, np.random.default_rng(0))

    def tokens_per_forward(self) -> float:
        """Tokens up to the first end token, over forwards."""
        rows = self.rows
        return float(rows.tokens.sum() / rows.forwards.sum())


@dataclass(frozen=True)
class Versus:
    """An arm minus a baseline on the rows that both have."""

    arm: Arm
    baseline: Arm
    num_rows: int
    at_one: tuple[float, Interval]
    """pass@1."""
    at_equal_forwards: tuple[float, Interval]
    """Mean over budgets of pass@(b / f)."""
    budgets: tuple[float, float] = field(default=(math.nan, math.nan))
    """Smallest and largest number of forwards a prompt."""


def versus(arm: Arm, baseline: Arm) -> Versus:
    """Paired by row; nan where they share none."""
    shared = [row_id for row_id in arm.rows.ids if row_id in set(baseline.rows.ids)]
    mine, theirs = arm.rows.take(shared), baseline.rows.take(shared)
    both = (mine.graded > 0) & (theirs.graded > 0)
    shared = [row_id for row_id, kept in zip(shared, both.tolist(), strict=True) if kept]
    mine, theirs = mine.take(shared), theirs.take(shared)
    one = paired(mine.pass_at(1), theirs.pass_at(1), np.random.default_rng(0))
    costs, sizes = [x.forwards_per_answer for x in (arm, baseline)], [x.largest_k() for x in (arm, baseline)]
    low, high = max(costs), min(cost * size for cost, size in zip(costs, sizes, strict=True))
    if not shared or low > high:
        return Versus(arm, baseline, len(shared), one, (math.nan, (math.nan, math.nan)))
    budget_b = np.geomspace(low, high, NUM_BUDGETS)
    curves = [
        at_budgets(rows, budget_b / cost, largest=size).mean(axis=1)
        for rows, cost, size in zip((mine, theirs), costs, sizes, strict=True)
    ]
    equal = paired(curves[0], curves[1], np.random.default_rng(0))
    return Versus(arm, baseline, len(shared), one, equal, (float(low), float(high)))


def at_budgets(rows: Rows, k_b: np.ndarray, *, largest: int) -> np.ndarray:
    """pass@k (R, b) of each row at numbers of answers that need not be whole."""
    curve_Rk = np.stack([rows.pass_at(k) for k in range(1, largest + 1)], axis=1)
    whole = np.arange(1, largest + 1)
    return np.stack([np.interp(k_b, whole, curve_k) for curve_k in curve_Rk])


def read_arms(files: Sequence[Path]) -> list[Arm]:
    """Arms of result files of `unmask eval --json`, seeds of the same question put together, named apart."""
    found: dict[str, Arm] = {}
    for file in files:
        for arm in _read(file):
            key = json.dumps([arm.task, arm.sampler, arm.options, arm.settings], sort_keys=True)
            known = found.get(key)
            if known is None:
                found[key] = arm
                continue
            (seed,) = arm.seeds
            if seed in known.seeds:
                raise ValueError(f"{file}: {arm.sampler} on {arm.task} with seed {seed} is in another file too")
            if known.rows.ids != arm.rows.ids:
                raise ValueError(
                    f"{file}: {arm.sampler} on {arm.task} answered {len(arm.rows.ids)} rows, and other rows with "
                    f"seeds {', '.join(map(str, known.seeds))}; use one --limit and one test file for all seeds"
                )
            found[key] = replace(known, seeds={**known.seeds, **arm.seeds})
    return named(list(found.values()))


def named(arms: Sequence[Arm]) -> list[Arm]:
    """Each arm with a label: sampler, its options, and the settings in which arms of the same task differ."""
    spread = [name for name in SETTINGS if len({_text(arm.settings.get(name)) for arm in arms}) > 1]
    return [
        replace(arm, label=label_of(arm.sampler, {**arm.options, **{name: arm.settings.get(name) for name in spread}}))
        for arm in arms
    ]


def label_of(sampler: str, options: Mapping[str, Any]) -> str:
    """`threshold tau=0.8`."""
    return " ".join([sampler, *(f"{name}={_text(value)}" for name, value in options.items())])


def _read(file: Path) -> list[Arm]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        shared = {"model": record["model"], "dtype": record["dtype"]}
        return [
            Arm(
                task=one["task"],
                sampler=one["sampler"],
                options=one["sampler_options"],
                settings=shared | {name: one[name] for name in SETTINGS if name in one},
                seeds={int(record["seed"]): Rows.read(one["rows"])},
            )
            for one in record["results"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a result of `unmask eval --json` with rows ({type(error).__name__}: {error}); measure again"
        ) from error


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("kind", dict(value)))
    return f"{value:g}" if isinstance(value, float) else str(value)


def num_tokens(trajectory: Trajectory) -> int:
    """Tokens up to and including the first end token."""
    return min(trajectory.answer_length + 1, len(trajectory.tokens))


def _whole(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _value(entry: Any) -> Any:
    return entry if isinstance(entry, str) else int(entry)
