"""The description at the top of a run's page: what came out, what it is, how to use the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import PolicyRecipe, SftRecipe, TrainRecipe

Recipe = TrainRecipe | SftRecipe | PolicyRecipe


@dataclass(frozen=True, slots=True)
class RunNote:
    """What the description tells; `markdown` puts it into words."""

    recipe: Recipe
    accuracies: Mapping[str, Sequence[tuple[int, float]]]
    """Evaluation points (step, accuracy) of each task, in order of steps."""
    run_dir: Path
    code_version: str
    picture: str = ""
    """Address of the summary picture, relative to the page; none if empty."""
    checkpoint: Path | None = None
    upload_failures: bool = False

    def markdown(self) -> str:
        """The page shows the first lines at once and the rest on a click: the result comes first."""
        parts = [
            self._result(),
            self._summary(),
            f"![reward and decoding order]({self.picture})" if self.picture else "",
        ]
        parts += [self._checkpoint(), f"Run folder: `{self.run_dir}`, code: `{self.code_version}`"]
        if self.upload_failures:
            parts.append("Some uploads failed: `metrics.jsonl` in the run folder is complete.")
        return "\n\n".join(part for part in parts if part)

    def _result(self) -> str:
        results = []
        for task, points in sorted(self.accuracies.items()):
            (first_step, first), (last_step, last) = points[0], points[-1]
            change = f" → {last:.1%} at step {last_step} (**{100 * (last - first):+.1f} points**)"
            results.append(f"{task} {first:.1%}" + (change if last_step > first_step else f" at step {first_step}"))
        return "Held-out accuracy: " + "; ".join(results) if results else ""

    def _summary(self) -> str:
        recipe = self.recipe
        tasks = ", ".join(task.name for task in recipe.tasks)
        if isinstance(recipe, SftRecipe):
            return f"**Supervised fine-tuning** of `{recipe.model.path}` on {tasks}, seed {recipe.seed}."
        if isinstance(recipe, PolicyRecipe):
            policy = recipe.policy
            return (
                f"**Unmasking policies** for `{recipe.model.path}` (frozen) on {tasks}, seed {recipe.seed}: alphas "
                f"{', '.join(f'{alpha:g}' for alpha in policy.alphas)}; {policy.updates} updates of "
                f"{policy.prompts_per_update} prompts x {policy.num_samples} answers, {policy.max_new_tokens} slots, "
                f"learning rate {policy.lr:g}."
            )
        rollout, objective = recipe.rollout, recipe.learner.objective
        return (
            f"**GRPO** of `{recipe.model.path}` on {tasks}, seed {recipe.seed}: {recipe.steps} steps of "
            f"{recipe.prompts_per_step} prompts x {rollout.num_samples} answers; sampler `{rollout.sampler.name}`, "
            f"{rollout.max_new_tokens} slots, temperature {rollout.temperature:g}; "
            f"likelihood `{objective.likelihood}`, advantage `{objective.advantage}`, "
            f"learning rate {recipe.learner.optimizer.lr:g}."
        )

    def _checkpoint(self) -> str:
        if self.checkpoint is None:
            return ""
        tasks = ",".join(task.name for task in self.recipe.tasks)
        if isinstance(self.recipe, PolicyRecipe):
            path = self.checkpoint / f"alpha_{self.recipe.policy.alphas[0]:g}"
            return (
                f"Policies, a folder each: `{self.checkpoint}`\n\n"
                f"```\nunmask eval --model {self.recipe.model.path} --task {tasks} --sampler policy --set "
                f"sampler.path={path}\n```"
            )
        return (
            f"Weights, in the published layout: `{self.checkpoint}`\n\n"
            f"```\nunmask eval --model {self.checkpoint} --task {tasks}\n"
            f'unmask generate --model {self.checkpoint} --prompt "..."\n```'
        )
