"""What can be known to be wrong before any actor starts: settings that contradict each other (`cluster.consistency`), a
machine that is too small, a checkpoint that cannot be read, task rows that are broken or do not fit the model's window.

Checks raise `ValueError`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import SftRecipe, TrainRecipe
from cluster.consistency import check_settings
from cluster.recipe import Loaded
from learner.worker import NEW_TINY
from models.source import TINY
from rollout.config import DecodingConfig
from rollout.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cluster.bundles import Need

Recipe = TrainRecipe | SftRecipe
NUM_GENERATED = 256
"""Generated rows that are looked at before a run."""


def check_machine(recipe: Recipe) -> None:
    """Refuse a run that a Ray started on this machine could never place; a running cluster is asked on joining."""
    import ray

    from cluster.bundles import check_room
    from cluster.ray_start import cluster_address

    if ray.is_initialized() or cluster_address(recipe.cluster) != "local":
        return
    room = {"CPU": float(recipe.cluster.num_cpus or num_cpus()), "GPU": float(num_gpus())}
    check_room(actor_needs(recipe), {"this machine": room}, recipe.cluster.placement)


def actor_needs(recipe: Recipe) -> list[Need]:
    """Actors that a recipe starts; none in local mode."""
    from cluster.bundles import learner_need, train_needs

    if recipe.cluster.mode == "local":
        return []
    return train_needs(recipe) if isinstance(recipe, TrainRecipe) else [learner_need(recipe)]


def check_model(path: str) -> Path | None:
    """Folder of the checkpoint (of an adapter, its base's) after a look at config.json and the weight files' headers.

    A hub id is downloaded here, once, before workers ask for it. None for a model that does not exist yet.
    """
    from models.family import ModelError, family_of
    from models.source import adapter_base, read_config, resolve

    if path == NEW_TINY:
        return None
    base = adapter_base(path)
    if base is not None:
        _check_headers(Path(path))
        return check_model(base)
    folder = resolve(path)
    family_of(read_config(folder))
    if not _check_headers(folder):
        raise ModelError(f"{folder} holds no safetensors file; a model folder has config.json and its weights")
    return folder


def check_caches(recipe: Recipe, folder: Path | None) -> None:
    """Refuse a cache that does not fit the attention of the model's family."""
    from models.family import family_of
    from models.source import read_config

    if folder is None:
        return
    family = family_of(read_config(folder))
    sections: dict[str, DecodingConfig] = {"eval": recipe.eval}
    if isinstance(recipe, TrainRecipe):
        sections["rollout"] = recipe.rollout
    for section, decoding in sections.items():
        try:
            decoding.cache.policy().check(block_causal=family.block_causal)
        except ValueError as error:
            raise ValueError(f"{section}.cache.kind: {error} ({family.name} is the family of {folder})") from error


def check_tasks(recipe: Recipe, folder: Path | None) -> None:
    """Read every row of every task, and refuse prompts that leave no room for the answer."""
    from reward.tasks import build

    if len({config.name for config in recipe.tasks}) < len(recipe.tasks):
        named = ", ".join(config.name for config in recipe.tasks)
        raise ValueError(f"tasks: {named}: a task stands twice; name each once and set its weight instead")
    window = None if folder is None else Window.of(folder, recipe)
    section, slots = ("rollout", recipe.rollout) if isinstance(recipe, TrainRecipe) else ("sft", recipe.sft)
    for task in [build(config) for config in recipe.tasks]:
        rows, held_out = task.rows("train"), task.rows("test")[: recipe.eval.limit]
        # Rows of a file are all there; generated ones are made when asked for, and all of one form.
        rows = rows if isinstance(rows, tuple) else rows[:NUM_GENERATED]
        if window is not None:
            window.check([task.prompt(row) for row in rows], slots.max_new_tokens, f"{section}.max_new_tokens")
            window.check([task.prompt(row) for row in held_out], recipe.eval.max_new_tokens, "eval.max_new_tokens")


@dataclass(frozen=True)
class Window:
    """How much fits a model: prompt and answer together."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    model: str

    @classmethod
    def of(cls, folder: Path, recipe: Recipe) -> Window:
        """The window of a checkpoint, or the smaller one that the recipe sets."""
        from models.family import ModelError, family_of
        from models.source import read_config
        from models.tokenizer import load_tokenizer

        config = read_config(folder)
        own = int(config[family_of(config).window_field])
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise ModelError(f"{folder} has no tokenizer files; put tokenizer.json beside config.json")
        return cls(tokenizer, min(own, recipe.model.max_length or own), recipe.model.path)

    def check(self, prompts: Sequence[Prompt], max_new_tokens: int, setting: str) -> None:
        """Refuse prompts of which the longest does not fit together with the answer."""
        lengths = self.count_tokens(prompts)
        longest = max(range(len(prompts)), key=lengths.__getitem__)
        together = lengths[longest] + max_new_tokens
        if together > self.size:
            raise ValueError(
                f"prompt {prompts[longest].id!r} of task {prompts[longest].task!r} has {lengths[longest]} tokens and "
                f"{setting} is {max_new_tokens}: together {together}, but the window of {self.model} is {self.size}.\n"
                f"Lower {setting}, take out long rows, or use a model with a longer window."
            )

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt, chat turns rendered by the tokenizer's template."""
        texts = [_rendered(self.tokenizer, prompt) if prompt.text is None else prompt.text for prompt in prompts]
        return [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def check_all(loaded: Loaded[Any]) -> list[str]:
    """Everything, cheapest first; returns warnings."""
    warnings = check_settings(loaded)
    check_machine(loaded.recipe)
    folder = check_model(loaded.recipe.model.path)
    check_caches(loaded.recipe, folder)
    check_tasks(loaded.recipe, folder)
    return warnings


def start_problems(recipe: Recipe) -> list[str]:
    """What would stop a start here, as far as it shows without network and without reading rows."""
    problems = []
    try:
        check_machine(recipe)
    except ValueError as error:
        problems.append(str(error))
    path = recipe.model.path
    if Path(path).exists() or path == TINY or not is_hub_id(path):
        try:
            check_caches(recipe, check_model(path))
        except ValueError as error:
            problems.append(str(error))
    for config in recipe.tasks:
        for name in ("train_file", "test_file"):
            file = getattr(config, name)
            if file is not None and not Path(file).is_file():
                problems.append(f"task {config.name}: {name} {file} is not there")
    for data in recipe.data if isinstance(recipe, SftRecipe) else ():
        problems += [f"data: {file} is not there" for file in data.files() if not Path(file).is_file()]
    return problems


def is_hub_id(path: str) -> bool:
    """Whether a model path is `owner/name` and no folder."""
    return path.count("/") == 1 and path[0] not in "./~" and not Path(path).exists() and path != NEW_TINY


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def _check_headers(folder: Path) -> int:
    """Number of weight files of a folder, each with a header that fits its size."""
    from safetensors import SafetensorError, safe_open

    from models.family import ModelError

    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: corrupt or truncated safetensors file ({error}); fetch it again") from error
    return len(files)


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"prompt {prompt.id!r} of task {prompt.task!r} is a chat, and the model's tokenizer has no chat template; "
            "choose a chat model, or give the rows as plain prompts with task jsonl"
        )
    turns = [dict(message) for message in prompt.messages or ()]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
