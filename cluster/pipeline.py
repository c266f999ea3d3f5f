"""Two stages from one recipe: supervised fine-tuning, then reinforcement learning from its best checkpoint.

    name: agdo-pipeline-tiny
    shared: {model: {path: tiny}, tasks: [...]}      settings of both stages
    sft: {sft: {steps: 100, ...}, ...}               what else `unmask sft` needs
    train: {steps: 60, rollout: {...}, ...}          what else `unmask train` needs

A stage's own settings go before the shared ones; mappings are merged, anything else is replaced. The runs are named
`<name>-sft` and `<name>-train`, and are runs like any others: each has its folder, its record and its checkpoints.
`--resume` goes on in whichever stage was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import SftRecipe, TrainRecipe
from cluster.errors import Problem, RecipeError, nearest
from cluster.recipe import Draft, Loaded, check, read

if TYPE_CHECKING:
    from cluster.sft_run import SftSummary
    from cluster.train_run import TrainSummary

logger = logging.getLogger(__name__)

KEYS = ("name", "shared", "sft", "train")


@dataclass(frozen=True)
class Pipeline:
    """The checked recipes of both stages; the second one's model is still that of the first."""

    sft: Loaded[SftRecipe]
    train: Loaded[TrainRecipe]


def load_pipeline(path: str | Path, *, overrides: Sequence[str] = ()) -> Pipeline:
    """Read, override and check both stages."""
    draft = read(path, overrides)
    unknown = [key for key in draft.data if key not in KEYS]
    problems = [Problem("", key, f"unknown key{nearest(key, KEYS)}", f"keys: {', '.join(KEYS)}") for key in unknown]
    for key in ("shared", "sft", "train"):
        if not isinstance(draft.data.get(key, {} if key == "shared" else None), Mapping):
            problems.append(Problem("", key, "must be a mapping of settings; a pipeline has the stages sft and train"))
    if not problems and "path" in (draft.data["train"].get("model") or {}):
        why = "cannot be given: this stage starts from the best checkpoint of the stage sft"
        problems.append(Problem("", "train.model.path", why))
    if problems:
        raise RecipeError(str(draft.source), problems)
    return Pipeline(check(_stage(draft, "sft"), SftRecipe), check(_stage(draft, "train"), TrainRecipe))


def _stage(draft: Draft, stage: str) -> Draft:
    """The recipe of one stage: shared settings under its own."""
    named = {"name": f"{draft.data.get('name', draft.source.stem)}-{stage}"}
    merged = _merged(_merged(draft.data.get("shared") or {}, draft.data[stage]), named)

    def own(paths: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for prefix in ("shared.", f"{stage}."):
            found |= {path.removeprefix(prefix): paths[path] for path in paths if path.startswith(prefix)}
        return found

    in_file = frozenset(own(dict.fromkeys(draft.in_file))) | {"name"}
    return replace(draft, data=merged, lines=own(draft.lines), in_file=in_file, given=own(draft.given))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found


def run_pipeline(
    pipeline: Pipeline, *, resume: bool, told: Callable[[SftSummary], None]
) -> tuple[SftSummary, TrainSummary]:
    """Both stages; everything that can be known to be wrong with either is refused before the first starts.

    `told` hears of the first stage when it is done.
    """
    from cluster.preflight import check_all
    from cluster.sft_run import run_sft
    from cluster.train_run import run_train

    for loaded in (pipeline.sft, pipeline.train):
        for warning in check_all(loaded):
            logger.warning("%s: %s", loaded.recipe.name, warning)
    tuned = run_sft(pipeline.sft.recipe, resume=resume)
    told(tuned)
    recipe = pipeline.train.recipe
    model = recipe.model.model_copy(update={"path": str(whole_model(Path(tuned.checkpoint)))})
    return tuned, run_train(recipe.model_copy(update={"model": model}), resume=resume)


def whole_model(folder: Path) -> Path:
    """The folder, or, of an adapter, one beside it that holds the base with the adapter added in.

    The second stage trains an adapter of its own, and its divergence term measures from the first stage's result.
    """
    from models import load, merge_lora, save
    from models.source import adapter_base

    if adapter_base(folder) is None:
        return folder
    merged = folder.parent / "merged"
    if not (merged / "config.json").exists():
        denoiser = load(folder)
        merge_lora(denoiser)
        save(denoiser, merged)  # config.json is written last
    return merged
