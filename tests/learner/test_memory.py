"""The estimate of activations against what a pass keeps, and the choice that follows from it."""

import pytest
import torch

import models
from learner.activations import Widths, saved_bytes_per_token
from learner.config import EngineConfig
from learner.memory import available_bytes, has_room
from models.packing import Span
from tests.learner.small_models import CONFIGS

LLADA = CONFIGS["llada"] | {"d_model": 64, "n_heads": 4, "mlp_hidden_size": 160, "n_layers": 6}
CASES = {
    "a key head for each query head": LLADA | {"n_kv_heads": 4},
    "two query heads to a key head": LLADA | {"n_kv_heads": 2},
    "norms of queries and keys": CONFIGS["sdar"]
    | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6},
}


def kept_bytes_per_token(denoiser, *, num_spans=4, length=32):
    """Of tensors that autograd keeps beside the weights, each once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    kept, alive = {}, []

    def note(tensor):
        alive.append(tensor)  # a freed tensor's address would be used again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        packing = denoiser.packing([Span(0, 0, length, length)] * num_spans)
        pending = denoiser.start(torch.full((num_spans * length,), 5), packing)
        pending.hidden(torch.arange(num_spans) * length, [1] * num_spans)
    return sum(kept.values()) / (num_spans * length)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimate_is_close_to_what_a_layer_keeps(case, dtype):
    # Of two depths, so that what only the ends of the model keep drops out.
    deep, shallow = (
        models.create(
            CASES[case] | {key: depth for key in ("n_layers", "num_hidden_layers") if key in CASES[case]}, seed=0
        ).to(dtype)
        for depth in (6, 3)
    )
    a_layer = (kept_bytes_per_token(deep) - kept_bytes_per_token(shallow)) / 3
    estimate = saved_bytes_per_token(Widths.of(deep), dtype.itemsize, recompute=False) / 6
    assert estimate == pytest.approx(a_layer, rel=0.2)


def test_recomputation_keeps_the_layers_inputs():
    deep, shallow = (models.create(LLADA | {"n_layers": depth}, seed=0) for depth in (6, 3))
    for denoiser in (deep, shallow):
        denoiser.stack.recompute = True
    assert kept_bytes_per_token(deep) - kept_bytes_per_token(shallow) == pytest.approx(3 * 64 * 4, rel=0.1)


def test_bytes_of_a_token_by_hand():
    # Width 8, 8 query and 4 key channels, feed-forward 20, float32: norms 2 * (2 * 4 + 4) * 8 = 192; attention
    # 4 * (16 + 8 + 8) = 128; feed-forward 4 * 4 * 20 = 320. 640 a layer; recomputed: 3 inputs of 32 and one layer.
    widths = Widths(layers=3, width=8, queries=8, keys=4, feed_forward=20)
    assert saved_bytes_per_token(widths, 4, recompute=False) == 3 * 640
    assert saved_bytes_per_token(widths, 4, recompute=True) == 3 * 32 + 640


def test_room_is_what_other_allocations_and_other_processes_leave():
    denoiser = models.create(LLADA, seed=0)
    free = available_bytes(torch.device("cpu"))
    assert free > 2**20
    token = saved_bytes_per_token(Widths.of(denoiser), 4, recompute=False)
    fitting = free // 2 // token
    assert has_room(denoiser, num_tokens=fitting, pending_bytes=0, num_sharing=1)
    assert not has_room(denoiser, num_tokens=fitting, pending_bytes=0, num_sharing=2)
    assert not has_room(denoiser, num_tokens=fitting, pending_bytes=free // 2, num_sharing=1)
    assert not has_room(denoiser, num_tokens=4 * fitting, pending_bytes=0, num_sharing=1)


@pytest.mark.parametrize(
    ("given", "meant"), [("on", True), ("off", False), (True, True), (False, False), ("auto", "auto")]
)
def test_setting_knows_on_and_off(given, meant):
    assert EngineConfig(activation_checkpointing=given).activation_checkpointing == meant
    assert EngineConfig(overlap_comm=given).overlap_comm == meant
