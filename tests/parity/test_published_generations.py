"""Our engine against the published samplers, token by token and in the same order of denoising, at temperature 0.

The committed fixtures always run; the larger published ones where they lie beside the checkout. A published run is put
in the engine's own terms: a position rule, a how-many rule, a block length. Three differences are allowed for:

- Dream's schedule has steps that commit nothing; the engine has no such steps.
- The published decoders fill a block to its end after a stop token; the engine stops at the token.
- Dream, Open-dLLM and LLaDA2 are run with `keep_mask_mass`.

Left out: Fast-dLLM v2's block cache, which is an approximation (keys of a block go stale while a sub-block is decoded),
so exact attention gives other tokens. Open-dLLM's p2 masks filled slots again and is no rule of this engine: it runs as
a plain loop over the model.
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
import rollout
import samplers
from samplers.count import CountRule, Threshold
from samplers.position import Confidence, Entropy, Margin
from samplers.prediction import Need
from samplers.sampler import Sampler
from tests.parity import published_decoders

ROOTS = [Path(__file__).parent / "fixtures", Path(__file__).parents[3] / "shared" / "parity"]
FOLDERS = [path.parent for root in ROOTS for path in sorted(root.glob("*/expected_generate.json"))]


# ---- how-many rules of published decoders: each is one small class


@lru_cache
def dream_counts(num_masked: int, steps: int, eps: float) -> tuple[int, ...]:
    """Slots of each step that commits any: a share 1 - s/t of those still masked, the last step takes the rest."""
    time, counts = torch.linspace(1, eps, steps + 1), []
    for i in range(steps):
        counts.append(int(num_masked * (1 - time[i + 1] / time[i])) if i < steps - 1 else num_masked)
        num_masked -= counts[-1]
    return tuple(count for count in counts if count)


@dataclass(frozen=True)
class DreamSchedule(CountRule):
    steps: int
    eps: float

    def select(self, ranked):
        rows = zip(ranked.state.block_masked_R.tolist(), ranked.state.block_step_R.tolist(), strict=True)
        return ranked.first(torch.tensor([dream_counts(n, self.steps, self.eps)[step] for n, step in rows]))


@dataclass(frozen=True)
class AtLeast(CountRule):
    """LLaDA2: every slot that reaches a threshold, and never fewer than a number."""

    tau: float
    number: int

    needs = Need.TOP_PROB

    def select(self, ranked):
        return Threshold(self.tau).select(ranked) | ranked.first(torch.full_like(ranked.state.masked_R, self.number))


def position_first(position, count: CountRule) -> Sampler:
    return Sampler(type(position).__name__.lower(), position, count, eos_guard=False)


# ---- published runs in the engine's terms


@dataclass
class Recipe:
    sampler: Any
    max_new_tokens: int
    steps: int | None = None
    engine: dict[str, int] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    mask_mass: bool = False


def llada(args, prompt_length):
    sampler = samplers.build("confidence", eos_guard=False)
    return Recipe(sampler, args["gen_length"], args["steps"], {"block_length": args["block_length"]})


def dream(args, prompt_length):
    position = {"maskgit_plus": Confidence(), "entropy": Entropy(), "topk_margin": Margin()}[args["alg"]]
    sampler = position_first(position, DreamSchedule(args["steps"], args["eps"]))
    return Recipe(sampler, args["max_new_tokens"], mask_mass=True)


def to_block_end(prompt_length, max_new_tokens, length):
    return -(-(prompt_length + max_new_tokens) // length) * length - prompt_length


def sdar(args, prompt_length):
    length, sequential = args["block_length"], args["remasking_strategy"] == "sequential"
    number = length // args["denoising_steps"] if sequential else length
    return Recipe(
        samplers.build("ar", tokens_per_step=number),
        to_block_end(prompt_length, args["gen_length"], length),
        engine={"block_length": length},
        stop_ids=tuple(args["stopping_criteria_idx"] or ()),
    )


def llada2(args, prompt_length):
    length = args["block_length"]
    sampler = position_first(Confidence(), AtLeast(args["threshold"], length // args["steps"]))
    max_new_tokens = to_block_end(prompt_length, args["gen_length"], length)
    return Recipe(sampler, max_new_tokens, engine={"block_length": length}, mask_mass=True)


def fast_dllm_v2(args, prompt_length):
    # A finished block gives the first token of the next one, so an answer ends one slot into a new block.
    length = args["block_size"]
    end = (prompt_length // length + args["max_new_tokens"] // length) * length + 1
    return Recipe(
        samplers.build("threshold", tau=args["threshold"]),
        end - prompt_length,
        engine={"block_length": length, "sub_block_length": args["small_block_size"]},
        stop_ids=(args["stop_token"],),
    )


RECIPES = {
    "llada": llada,
    "llada_gqa": llada,
    "dream": dream,
    "open_dllm": dream,
    "sdar": sdar,
    "sdar_moe": sdar,
    "llada2": llada2,
    "fast_dllm_v2": fast_dllm_v2,
}


def runs(folder):
    return json.loads((folder / "expected_generate.json").read_text())["runs"]


def run_list(wanted):
    """(folder, index of a run) pairs."""
    return [
        pytest.param(folder, index, id=f"{folder.parent.name}-{folder.name}-{index}")
        for folder in FOLDERS
        for index, run in enumerate(runs(folder))
        if wanted(run["args"])
    ]


def is_exact(args):
    return args.get("alg") != "p2" and not args.get("use_block_cache")


def load(folder, args):
    """The published mask id is an argument of the sampler where config.json lacks it."""
    return models.load(folder, mask_token_id=args.get("mask_token_id", args.get("mask_id")))


def keep_mask_mass(denoiser):
    """Give the mask token's probability to a token beside the vocabulary.

    The published decoders leave the mask token in the law by which they rank slots, where its probability lowers a
    slot's confidence; we take it out of every law. No published run ever fills it in, so that is all it does.
    """
    weight_VD = denoiser.backbone.lm_head.weight.detach()
    head = torch.nn.Linear(weight_VD.shape[1], len(weight_VD) + 1, bias=False)
    head.weight = torch.nn.Parameter(torch.cat([weight_VD, weight_VD[[denoiser.mask_token_id]]]))
    denoiser.backbone.lm_head = head
    denoiser.vocab_size += 1


@dataclass
class Published:
    """One row of a run, without padding."""

    prompt: list[int]
    answer: list[int]
    order: list[int] | None
    """Step of each slot; inside its block where `in_block`."""
    in_block: bool


def published(run):
    masks = run.get("prompt_attention_mask") or [[1] * len(row) for row in run["prompt_ids"]]
    field_name = "unmask_step_in_block" if "unmask_step_in_block" in run else "unmask_step"
    for row, (prompt, mask) in enumerate(zip(run["prompt_ids"], masks, strict=True)):
        yield Published(
            prompt=[token for token, real in zip(prompt, mask, strict=True) if real],
            answer=run["generated_ids"][row] if "generated_ids" in run else run["output_ids"][row][len(prompt) :],
            order=run[field_name][row][len(prompt) :] if field_name in run else None,
            in_block=field_name == "unmask_step_in_block",
        )


@lru_cache
def generate(folder, index):
    """The rows of a run and our answers to them, all in one batch."""
    run = runs(folder)[index]
    rows = list(published(run))
    denoiser = load(folder, run["args"])
    recipes = [RECIPES[folder.name](run["args"], len(row.prompt)) for row in rows]
    # The mask token is never drawn, so a run without stop tokens has no end.
    denoiser.stop_token_ids = recipes[0].stop_ids or (denoiser.mask_token_id,)
    if recipes[0].mask_mass:
        keep_mask_mass(denoiser)
    engine = rollout.Engine(denoiser, recipes[0].sampler, **recipes[0].engine)
    requests = [
        rollout.Request(row.prompt, recipe.max_new_tokens, seed=0, steps=recipe.steps)
        for row, recipe in zip(rows, recipes, strict=True)
    ]
    return rows, engine.run(requests)


def order_of(answer, *, in_block):
    """Step map of the engine, counted inside each block (from position 0) if asked for."""
    if not in_block:
        return answer.step_map
    block_T = (len(answer.prompt_tokens) + np.arange(len(answer.tokens))) // answer.block_length
    first_T = np.array([answer.step_map[block_T == block].min() for block in block_T])
    return answer.step_map - first_T


@pytest.mark.parametrize(("folder", "index"), run_list(is_exact))
def test_engine_gives_the_tokens_of_the_published_sampler(folder, index):
    rows, answers = generate(folder, index)
    for row, answer in zip(rows, answers, strict=True):
        num_decided = min(answer.answer_length + 1, len(row.answer))
        assert answer.tokens[:num_decided].tolist() == row.answer[:num_decided]
        if answer.finish_reason == "length":
            assert num_decided == len(row.answer)


@pytest.mark.parametrize(("folder", "index"), run_list(is_exact))
def test_engine_fills_slots_in_the_order_of_the_published_sampler(folder, index):
    rows, answers = generate(folder, index)
    for row, answer in zip(rows, answers, strict=True):
        if row.order is None:
            continue
        num_decided = min(answer.answer_length + 1, len(row.answer))
        order = np.array(row.order)
        if not row.in_block:
            order = np.unique(order, return_inverse=True)[1]  # steps that fill something
        assert order_of(answer, in_block=row.in_block)[:num_decided].tolist() == order[:num_decided].tolist()


def test_a_stop_token_ends_an_answer_where_the_published_samplers_stop():
    # Those of SDAR fill the stop token's block and leave later ones masked; Fast-dLLM v2's cut behind the token.
    ended = 0
    for folder in FOLDERS:
        for index, run in enumerate(runs(folder)):
            stops = run["args"].get("stopping_criteria_idx")
            if not stops:
                continue
            rows, answers = generate(folder, index)
            for row, answer in zip(rows, answers, strict=True):
                assert answer.finish_reason == "eos"
                assert row.answer[answer.answer_length] in stops
                length = run["args"]["block_length"]
                last = (len(row.prompt) + answer.answer_length) // length * length + length - len(row.prompt)
                assert run["args"]["mask_id"] not in row.answer[:last]
                assert set(row.answer[last:]) <= {run["args"]["mask_id"]}
                ended += 1
    assert ended >= 4


@pytest.mark.parametrize(("folder", "index"), run_list(lambda args: args.get("alg") == "p2"))
def test_model_gives_the_tokens_of_path_planning(folder, index):
    run = runs(folder)[index]
    denoiser = load(folder, run["args"])

    @torch.no_grad()
    def predict(tokens, block_length):
        return denoiser.logits(torch.tensor([tokens]))[0]

    for row in published(run):
        canvas = published_decoders.p2(predict, row.prompt, run["args"])
        assert canvas.tokens[len(row.prompt) :] == row.answer


@pytest.mark.parametrize(("folder", "index"), run_list(lambda args: args.get("use_block_cache")))
def test_only_the_approximate_block_cache_is_not_reproduced(folder, index):
    rows, answers = generate(folder, index)
    assert [answer.tokens.tolist() for answer in answers] != [row.answer for row in rows]


def test_every_family_has_committed_generations():
    assert {folder.name for folder in FOLDERS if folder.parent == ROOTS[0]} == set(RECIPES)


def test_schedule_of_dream_skips_steps_that_fill_nothing():
    # Shares of 4 slots in two steps: 1 - .5 / 1 of them, then the rest.
    assert dream_counts(4, 2, 0.0) == (2, 2)
    # With eps .001 the first share is 1 - .5005 = .4995, of 2 slots .999: nothing.
    assert dream_counts(2, 2, 0.001) == (2,)
