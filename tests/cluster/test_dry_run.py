"""`--dry-run`: every recipe plans without network and checkpoint, and the memory it names follows from the sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import SftRecipe, TrainRecipe
from cluster.dry_run import model_config, plan, show, shown
from cluster.memory import PUBLISHED, footprints
from cluster.recipe import load
from cluster.terminal import console

REPOSITORY = Path(__file__).parents[2]
OTHER_KINDS = ("serve", "policy")
"""Recipes of the service and of unmasking policies have no learner to plan for; those of two stages have own tests."""
RECIPES = sorted(
    path
    for path in (REPOSITORY / "recipes").glob("*.yaml")
    if "\ntrain:" not in path.read_text() and not path.stem.startswith(OTHER_KINDS)
)
LLADA = "GSAI-ML/LLaDA-8B-Instruct"
NUM_LLADA = 8_015_581_184
"""Parameters of the released LLaDA-8B."""


def load_any(path, **options):
    return load(path, SftRecipe if "sft" in path.stem else TrainRecipe, **options)


def recipe_of(tmp_path, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(f"tasks:\n  - name: gsm8k\nmodel: {{path: {LLADA}, dtype: bfloat16}}\n")
    engine = ["learner.engine.dtype=bfloat16", "learner.engine.num_ranks=4", "learner.engine.gpus_per_rank=1"]
    return load(path, TrainRecipe, overrides=[*engine, *overrides])


def parts(loaded, who):
    footprint = next(f for f in footprints(loaded.recipe, PUBLISHED[LLADA]) if f.who == who)
    return dict(footprint.parts)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_plans(path, capsys):
    planned = plan(load_any(path))
    show(planned, console(), source=path)
    printed = capsys.readouterr().out
    assert "nothing is started" in printed
    # Their model is not there yet.
    made_by_an_earlier_command = path.stem in {"gsm8k-random", "tiny-sft-2", "code-tiny"}
    assert planned.warnings == [] or made_by_an_earlier_command
    assert planned.memory or made_by_an_earlier_command


@pytest.mark.parametrize("path", [path for path in RECIPES if "GB" in path.read_text()], ids=lambda path: path.stem)
def test_memory_named_in_the_comment_of_a_recipe_is_the_estimate(path):
    comment = path.read_text().split("name:")[0]
    estimated = {footprint.who: footprint.total for footprint in plan(load_any(path)).memory}
    for who, size in estimated.items():
        named = re.search(rf"(under )?([0-9]+) GB (?:for |a |of ){who.split()[0]}", comment)
        if named is None:
            bound = re.search(r"under ([0-9]) GB a process", comment)
            assert bound is not None
            assert size < float(bound[1]) * 1e9
        else:
            assert float(named[2]) == round(size / 1e9)


def test_plan_shows_value_and_origin_of_each_setting(tmp_path, capsys):
    show(plan(recipe_of(tmp_path, "rollout.sampler.options.tau=0.9")), console(), source=Path("r.yaml"))
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["learner.engine.num_ranks"] == ["4", "command", "line"]
    assert lines["model.path"] == [LLADA, "recipe"]
    assert lines["steps"] == ["100", "default"]
    assert lines["rollout.sampler.options"] == ["{tau:", "0.9}", "command", "line"]


def test_plan_starts_nothing_and_names_what_would_stop_a_start(tmp_path):
    # In a process of its own: other tests of this one may have started Ray.
    code = (
        "import sys, ray; from pathlib import Path; from cluster.config import TrainRecipe\n"
        "from cluster.dry_run import plan; from cluster.recipe import load\n"
        "planned = plan(load(Path(sys.argv[1]), TrainRecipe, overrides=sys.argv[2:]))\n"
        "assert not ray.is_initialized(); print(planned.problems)"
    )
    recipe_of(tmp_path)
    overrides = ["learner.engine.num_ranks=4", "learner.engine.gpus_per_rank=64", "learner.engine.dtype=bfloat16"]
    command = [sys.executable, "-c", code, str(tmp_path / "r.yaml"), *overrides]
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=300, cwd=REPOSITORY)
    assert "256 GPU wanted together" in done.stdout, done.stdout + done.stderr


def test_released_models_have_their_sizes(tmp_path):
    loaded = recipe_of(tmp_path)
    assert parts(loaded, "rollout worker")["weights"] == 2 * NUM_LLADA
    counts = {
        "Dream-org/Dream-v0-Instruct-7B": 7_615_616_512,
        "JetLM/SDAR-8B-Chat": 8_190_735_360,  # its weight files hold 16.4 GB of bfloat16
    }
    for name, count in counts.items():
        worker = footprints(loaded.recipe, PUBLISHED[name])[0]
        assert dict(worker.parts)["weights"] == 2 * count


def test_zero_stages_split_what_they_say_over_the_ranks(tmp_path):
    stage = {n: parts(recipe_of(tmp_path, f"learner.engine.zero_stage={n}"), "learner rank") for n in (0, 1, 2, 3)}
    # bfloat16: two moments, a master copy and a gradient in float32 make 16 bytes a number
    assert stage[0]["optimizer"] == 16 * NUM_LLADA
    assert stage[1]["optimizer"] == stage[3]["optimizer"] == 16 * NUM_LLADA // 4
    assert stage[1]["gradients"] == 2 * NUM_LLADA + 2 * 500_000_000
    assert stage[2]["gradients"] == 2 * NUM_LLADA // 4 + 2 * 500_000_000
    assert stage[2]["weights"] == 2 * NUM_LLADA
    assert stage[3]["weights"] == 2 * NUM_LLADA // 4 + 2 * 1_000_000_000


def test_offloaded_parts_move_from_the_gpu_to_its_host(tmp_path):
    overrides = ["learner.engine.zero_stage=3"]
    before = parts(recipe_of(tmp_path, *overrides), "learner rank")
    offloaded = recipe_of(tmp_path, *overrides, "learner.engine.offload=optimizer")
    assert parts(offloaded, "learner rank")["optimizer"] == 0
    assert parts(offloaded, "host of a learner rank")["optimizer"] == before["optimizer"] == 16 * NUM_LLADA // 4
    everything = recipe_of(tmp_path, *overrides, "learner.engine.offload=parameters")
    assert parts(everything, "learner rank")["weights"] == 2 * 1_000_000_000  # what is gathered at a time
    assert parts(everything, "host of a learner rank")["weights"] == 2 * NUM_LLADA // 4


def test_lora_trains_and_publishes_the_adapter_alone(tmp_path):
    loaded = recipe_of(tmp_path, "model.lora.rank=16", "learner.objective.kl_coef=0.1")
    # rank x (inputs + outputs): q, k, v, o of 4096 to 4096 and three of 4096 x 12288, in 32 layers
    adapter = 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 12288))
    learner = parts(loaded, "learner rank")
    assert learner["weights"] == 2 * (NUM_LLADA + adapter)
    assert learner["optimizer"] == 16 * adapter // 4
    assert "reference" not in learner
    assert parts(loaded, "published weights") == {"two versions": 2 * 2 * adapter}


def test_frozen_reference_costs_a_second_copy_without_lora(tmp_path):
    loaded = recipe_of(tmp_path, "learner.objective.kl_coef=0.1")
    assert parts(loaded, "learner rank")["reference"] == 2 * NUM_LLADA


def test_activations_grow_with_the_token_budget_and_shrink_with_checkpointing(tmp_path):
    def activations(tokens, checkpointing):
        overrides = [f"learner.engine.micro_batch_tokens={tokens}"]
        overrides.append(f"learner.engine.activation_checkpointing={checkpointing}")
        return parts(recipe_of(tmp_path, *overrides), "learner rank")["activations"]

    assert activations(2048, "true") == 2 * activations(1024, "true")
    # at least the input of each of the 32 layers, 4096 numbers of two bytes a token
    assert 32 * 4096 * 2 * 1024 < activations(1024, "true") < activations(1024, "false") / 4


def test_model_that_is_not_here_has_no_estimate_and_says_so(tmp_path):
    planned = plan(recipe_of(tmp_path, "model.path=someone/other-model"))
    assert planned.memory == []
    assert any("no memory estimate" in warning for warning in planned.warnings)


def test_model_folder_gives_its_own_sizes(small_model):
    assert model_config(str(small_model))["d_model"] == 32


def test_values_are_shown_as_a_recipe_writes_them():
    values = [None, True, 1e-6, (0.9, 0.95), {"tau": 0.5, "x": None}, "text", 3]
    assert [shown(v) for v in values] == ["null", "true", "1e-06", "[0.9, 0.95]", "{tau: 0.5, x: null}", "text", "3"]
