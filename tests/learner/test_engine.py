import subprocess
import sys
from functools import partial
from pathlib import Path

import deepspeed
import numpy as np
import pytest
import torch

import models
from learner import sft
from learner.engine import LearnerEngine, deepspeed_config, prepare_process
from learner.plan import micro_batches
from learner.worker import free_port
from models import token_logprobs
from models.packing import Span
from tests.learner.ranks import CASES, LORA, RESUMED, canvases, config, results, resumed, saved
from tests.learner.small_models import CONFIGS, small_denoiser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_rank(port):
    prepare_process(rank=0, world_size=1, master_addr="127.0.0.1", master_port=port)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of the model that all ranks start from."""
    folder = tmp_path_factory.mktemp("model")
    models.save(small_denoiser("llada"), folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folder of what one number of ranks saves and another reads."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_one_rank(model, port, shared):
    """What this process saves, and how it goes on."""
    return {case: saved(0, 1, port, model, case, shared) for case in RESUMED}


@pytest.fixture(scope="module")
def of_two_ranks(of_one_rank, shared, model):
    """Results of both of two processes, all cases in one launch."""
    folder, port = shared, str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learner.ranks", str(rank), "2", port, str(model), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_rank(case, of_two_ranks, model, port, tmp_path):
    expected = results(0, 1, port, model, case, tmp_path)
    first, second = (of_rank[case] for of_rank in of_two_ranks)
    for one, two in zip(expected["metrics"], first["metrics"], strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert second["metrics"] == first["metrics"]
    assert first["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        np.testing.assert_allclose(first["weights"][name], value, atol=1e-5, rtol=0, err_msg=name)
    assert first["restored"]
    assert second["restored"]
    assert expected["restored"]


@pytest.mark.parametrize("case", RESUMED)
def test_a_checkpoint_is_read_by_another_number_of_ranks(case, of_one_rank, of_two_ranks, shared, model, port):
    by_two = of_two_ranks[0]
    pairs = [
        (of_one_rank[case], by_two["resumed"][case]),
        (by_two["saved"][case], resumed(0, 1, port, model, case, shared, saved_by=2)),
    ]
    # The state is the saved one; the next step adds its gradients up in another order (bfloat16: 8 bits a number).
    rough, apart = (2e-2, 2**-7) if "bfloat16" in case else (1e-4, 1e-5)
    for straight, other in pairs:
        assert other["weights"].keys() == straight["weights"].keys()
        for name, value in straight["weights"].items():
            np.testing.assert_array_equal(other["weights"][name], value, err_msg=name)
        assert other["third"] == pytest.approx(straight["third"], rel=rough)
        for name, value in straight["after"].items():
            found = as_float(other["after"][name])
            np.testing.assert_allclose(found, as_float(value), atol=apart, rtol=apart, err_msg=name)
    assert not list(shared.glob("*.partial"))


def as_float(array):
    """Numbers of an array that may be bfloat16 as integers."""
    return torch.from_numpy(array).view(torch.bfloat16).float().numpy() if array.dtype == np.uint16 else array


def build(learner, *, lora=False):
    """One rank's engine around a small model, with reference weights unless it trains adapters."""
    dtype = getattr(torch, learner.engine.dtype)
    denoiser, reference = small_denoiser("llada").to(dtype), None
    if lora:
        models.apply_lora(denoiser, LORA)
    else:
        reference = small_denoiser("llada").to(dtype)
    return LearnerEngine(denoiser, learner, total_steps=10, reference=reference)


def sft_loss(denoiser, masked):
    """All canvases in one pass."""
    plan = sft.plan_masked(masked, family=denoiser.family)
    return sft.sft_loss(denoiser, plan, range(len(plan.canvases)))


def sft_backward(engine, masked, num_examples):
    """Losses of several micro-batches."""
    plan = sft.plan_masked(masked, family=engine.denoiser.family)

    def compute(group):
        return lambda: sft.sft_loss(engine.denoiser, plan, group) / num_examples

    return [engine.backward(compute(group)) for group in micro_batches(plan, 40)]


def sft_update(engine, share, num_examples):
    sft_backward(engine, share, num_examples)
    return engine.step()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_update_takes_the_gradient_of_the_whole_batch_once(stage):
    engine = build(config(zero_stage=stage))
    batch = canvases()
    plain = small_denoiser("llada")
    whole = sft_loss(plain, batch) / len(batch)
    whole.backward()
    norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
    losses = sft_backward(engine, batch, len(batch))
    assert len(losses) > 1
    assert sum(losses) == pytest.approx(whole.item(), rel=1e-5)
    assert engine.step()["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert sft_update(engine, batch, len(batch))["grad_norm"] != pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize("stage", [1, 3])
def test_activation_checkpointing_gives_the_same_gradient(stage):
    updates = [
        sft_update(build(config(zero_stage=stage, activation_checkpointing=on)), canvases(), 5) for on in (False, True)
    ]
    assert updates[0]["grad_norm"] == pytest.approx(updates[1]["grad_norm"], rel=1e-6)


def test_activation_checkpointing_keeps_less_for_the_backward_pass():
    kept = []
    for on in (False, True):
        engine, sizes = build(config(zero_stage=1, activation_checkpointing=on)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            engine.backward(lambda engine=engine: sft_loss(engine.denoiser, canvases()))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_recomputation_is_switched_on_when_activations_do_not_fit():
    fits = build(config(zero_stage=1))
    assert fits.describe()["activation_checkpointing"] is False
    crowded = config(zero_stage=1).engine.model_copy(update={"micro_batch_tokens": 10**12})
    learner = config(zero_stage=1).model_copy(update={"engine": crowded})
    assert build(learner).describe()["activation_checkpointing"] is True
    off = learner.model_copy(update={"engine": crowded.model_copy(update={"activation_checkpointing": False})})
    assert build(off).describe()["activation_checkpointing"] is False


@pytest.mark.parametrize("lora", [False, True])
def test_partitioned_weights_are_there_for_a_pass_before_any_training(lora):
    engine = build(config(zero_stage=3), lora=lora)
    plain = small_denoiser("llada")
    with torch.no_grad():
        expected = float(sft_loss(plain, canvases()))
    owners = {name: m for name, m in engine.denoiser.named_modules() if list(m.parameters(recurse=False))}
    called = set()
    for name, module in owners.items():
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    assert float(engine.evaluate(partial(sft_loss, engine.denoiser, canvases()))) == pytest.approx(expected, rel=1e-6)
    # Weights are gathered when their module is called, so every one has to be.
    assert called == set(owners)


def test_head_reads_a_partitioned_weight_in_chunks_forward_and_backward():
    norms = []
    for stage in (1, 3):
        # 8192 x 16 numbers: more than DeepSpeed keeps whole on every rank.
        denoiser = models.create(CONFIGS["llada"] | {"vocab_size": 8192, "embedding_size": 8192}, seed=0)
        engine = LearnerEngine(denoiser, config(zero_stage=stage), total_steps=1)
        assert (denoiser.backbone.lm_head.weight.numel() == 0) == (stage == 3)

        def loss(denoiser=denoiser):
            token_M = torch.arange(2, 8)
            pending = denoiser.start(token_M, denoiser.packing([Span(0, 0, 6, 6)]))
            # One row of logits a chunk, none of them kept.
            return -token_logprobs(denoiser, pending.hidden(torch.arange(6), [6]), token_M, chunk_bytes=1)[0].sum()

        engine.backward(loss)
        norms.append(engine.step()["grad_norm"])
    assert norms[0] > 1.0
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_gradients_are_reduced_beside_the_backward_pass_on_gpus_with_several_ranks():
    def overlaps(device_type, **engine):
        return deepspeed_config(config(**engine), device_type)["zero_optimization"]["overlap_comm"]

    assert overlaps("cuda", num_ranks=2)
    assert not overlaps("cuda", num_ranks=1)
    assert not overlaps("cpu", num_ranks=2)
    assert not overlaps("cuda", num_ranks=2, overlap_comm=False)
    assert overlaps("cuda", overlap_comm=True)
    with pytest.raises(ValueError, match=r"overlap_comm true needs GPUs.*set it to auto or false"):
        overlaps("cpu", overlap_comm=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_lowers_the_loss_and_ships_its_bits(stage):
    engine = build(config(zero_stage=stage, dtype="bfloat16"))
    loss = partial(sft_loss, engine.denoiser, canvases())
    before = float(engine.evaluate(loss))
    for _ in range(8):
        assert sft_update(engine, canvases(), 5)["grad_norm"] > 0
    assert float(engine.evaluate(loss)) < before
    ((name, array), *_) = engine.weights()[0].items()
    assert array.dtype == np.uint16
    bits = torch.from_numpy(array).view(torch.bfloat16)
    parameter = dict(engine.denoiser.backbone.named_parameters())[name]
    with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
        assert torch.equal(bits, parameter.detach())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_weights_without_a_copy_are_the_models_own_memory_where_it_holds_them_whole(stage):
    engine = build(config(zero_stage=stage))
    copies, views = engine.weights(), engine.weights(copy=False)
    for before, after in zip(copies, views, strict=True):
        assert all(np.array_equal(array, after[name]) for name, array in before.items())
    sft_update(engine, canvases(), 5)
    ((name, array), *_) = views[0].items()
    assert np.array_equal(array, engine.weights()[0][name]) == (stage < 3)
    assert not np.array_equal(copies[0][name], engine.weights()[0][name])


def test_bfloat16_without_master_weights_is_refused():
    with pytest.raises(ValueError, match="zero_stage to 1"):
        build(config(zero_stage=0, dtype="bfloat16"))


@pytest.mark.parametrize("stage", [1, 3])
def test_lora_trains_and_ships_the_adapters_only(stage):
    engine = build(config(zero_stage=stage), lora=True)
    start = {name: value.detach().clone() for name, value in small_denoiser("llada").backbone.named_parameters()}
    for _ in range(2):
        sft_update(engine, canvases(), 5)
    assert engine.describe()["num_trained_parameters"] < engine.describe()["num_parameters"] / 2
    (bucket,) = engine.weights()
    assert bucket
    assert all(".lora_" in name and np.abs(array).max() > 0 for name, array in bucket.items())
    with deepspeed.zero.GatheredParameters(list(engine.denoiser.parameters()), enabled=stage == 3):
        for name, value in engine.denoiser.backbone.named_parameters():
            if ".lora_" not in name:
                assert torch.equal(value, start[name.replace(".base_layer", "")])


def test_reference_of_a_lora_run_is_the_base_model():
    engine = build(config(zero_stage=1), lora=True)
    loss = partial(sft_loss, engine.denoiser, canvases())
    before = float(engine.evaluate(loss))
    sft_update(engine, canvases(), 5)
    assert float(engine.evaluate(loss)) != before
    with engine.reference() as frozen:
        assert float(engine.evaluate(partial(sft_loss, frozen, canvases()))) == pytest.approx(before, rel=1e-6)
    assert float(engine.evaluate(loss)) != pytest.approx(before, rel=1e-6)


def test_reference_stays_as_it_was_while_the_model_trains():
    engine = build(config(zero_stage=1))
    start = {name: value.clone() for name, value in engine.denoiser.state_dict().items()}
    before = float(engine.evaluate(partial(sft_loss, engine.denoiser, canvases())))
    sft_update(engine, canvases(), 5)
    assert not all(torch.equal(value, start[name]) for name, value in engine.denoiser.state_dict().items())
    with engine.reference() as frozen:
        assert all(torch.equal(value, start[name]) for name, value in frozen.state_dict().items())
        # Another copy of the weights lies elsewhere in memory, and products round by where they lie.
        assert float(sft_loss(frozen, canvases())) == pytest.approx(before, rel=1e-6)


def test_full_training_without_reference_weights_says_how_to_get_them():
    engine = LearnerEngine(small_denoiser("llada"), config(zero_stage=1), total_steps=1)
    with pytest.raises(ValueError, match="reference="), engine.reference():
        pass


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16"), (2, "bfloat16")],
)
def test_restored_engine_takes_the_same_next_step_bit_for_bit(stage, dtype, tmp_path):
    learner = config(zero_stage=stage, dtype=dtype)
    engine = build(learner)
    for _ in range(2):
        sft_update(engine, canvases(), 5)
    engine.save_state(tmp_path)
    expected = sft_update(engine, canvases(), 5)
    other = build(learner)
    other.load_state(tmp_path)
    assert sft_update(other, canvases(), 5) == expected
    for one, two in zip(engine.weights(), other.weights(), strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_restored_adapters_take_the_same_next_step(tmp_path):
    engine = build(config(zero_stage=1), lora=True)
    sft_update(engine, canvases(), 5)
    engine.save_state(tmp_path)
    expected = sft_update(engine, canvases(), 5)
    other = build(config(zero_stage=1), lora=True)
    other.load_state(tmp_path)
    assert sft_update(other, canvases(), 5) == expected


@pytest.mark.parametrize("stage", [1, 3])
def test_saved_model_computes_what_the_trained_one_does(stage, tmp_path):
    engine = build(config(zero_stage=stage))
    sft_update(engine, canvases(), 5)
    engine.save_model(tmp_path)
    loss = float(engine.evaluate(partial(sft_loss, engine.denoiser, canvases())))
    with torch.no_grad():
        assert float(sft_loss(models.load(tmp_path), canvases())) == pytest.approx(loss, rel=1e-6)


def test_step_without_any_pass_changes_no_weight():
    engine = build(config(zero_stage=1))
    before = engine.weights()
    assert engine.step()["grad_norm"] == 0
    assert all(np.array_equal(array, engine.weights()[0][name]) for name, array in before[0].items())
