"""Packed forwards equal the stock forward: side by side, with kept keys, in part, and in their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.packing import Span
from models.rotary import RotaryTable, fresh

LLADA = {
    "model_type": "llada", "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48,
    "vocab_size": 40, "embedding_size": 40, "mask_token_id": 39, "eos_token_id": 38,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_sequence_length": 128,
}  # fmt: skip
QWEN = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 40, "mask_token_id": 39, "eos_token_id": 38,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
CONFIGS = {
    "llada": LLADA,
    "llada, a key head for each query head": LLADA | {"n_kv_heads": 4},
    "dream": QWEN | {"model_type": "Dream"},
    "fast_dllm_v2": QWEN | {"model_type": "Fast_dLLM_Qwen", "bd_size": 4},
    "sdar": QWEN | {"model_type": "sdar", "head_dim": 16, "block_size": 4},
    "sdar_moe": QWEN | EXPERTS | {"model_type": "sdar_moe", "head_dim": 8, "block_size": 4},
    "llada2": QWEN
    | EXPERTS
    | {
        "model_type": "llada2_moe", "head_dim": 8, "block_size": 4, "partial_rotary_factor": 0.5, "n_group": 2,
        "topk_group": 1, "num_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
    },
}  # fmt: skip
_BUILT: dict[tuple[str, bool], models.Denoiser] = {}


def denoiser_of(name: str, *, fused: bool = False) -> models.Denoiser:
    if (name, fused) not in _BUILT:
        denoiser = models.create(CONFIGS[name], seed=3)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(5.0)
        if fused:
            denoiser.stack.fuse()
        _BUILT[name, fused] = denoiser.eval()
    return _BUILT[name, fused]


def sequences(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (length,), generator=generator) for length in lengths]


def stock(denoiser: models.Denoiser, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    return [denoiser.hidden(token_N[None])[0] for token_N in tokens]


def whole(lengths: list[int]) -> list[Span]:
    return [Span(row, 0, length, length) for row, length in enumerate(lengths)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lengths", [[13, 13, 9, 1, 20, 20], [70, 70, 60, 60]])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_sequences_equal_the_stock_forward_of_each(name: str, lengths: list[int], fused: bool) -> None:
    denoiser = denoiser_of(name, fused=fused)
    tokens = sequences(lengths)
    packing = denoiser.packing(whole(lengths))
    hidden = denoiser.start(torch.cat(tokens), packing).hidden(torch.arange(packing.num_tokens), lengths)
    torch.testing.assert_close(hidden, torch.cat(stock(denoiser, tokens)), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 24), st.integers(0, 23), st.integers(0, 2**10)), min_size=1, max_size=5),
)
@torch.no_grad()
def test_part_of_a_canvas_computed_again_over_kept_keys_equals_the_whole(name: str, fused: bool, shapes) -> None:
    denoiser = denoiser_of(name, fused=fused)
    lengths = [length for length, _, _ in shapes]
    tokens = sequences(lengths, seed=len(shapes))
    cache = denoiser.new_cache(len(lengths), 24)
    denoiser.start(torch.cat(tokens), denoiser.packing(whole(lengths), max_length=24), cache=cache)
    spans = [Span(row, min(start, n - 1), n, n) for row, (n, start, _) in enumerate(shapes)]
    packing = denoiser.packing(spans, max_length=24)
    part = torch.cat([token_N[span.start :] for token_N, span in zip(tokens, spans, strict=True)])
    pending = denoiser.start(part, packing, cache=cache)
    wanted = [
        [k for k in range(len(span)) if which >> k & 1] for span, (_, _, which) in zip(spans, shapes, strict=True)
    ]
    flat = torch.tensor([packing.offsets[s] + k for s, ks in enumerate(wanted) for k in ks], dtype=torch.int64)
    if not len(flat):
        return
    hidden = pending.hidden(flat, [len(ks) for ks in wanted])
    expected = stock(denoiser, tokens)
    found = [expected[s][spans[s].start + k] for s, ks in enumerate(wanted) for k in ks]
    torch.testing.assert_close(hidden, torch.stack(found), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["llada", "sdar", "llada2"])
def test_gradients_equal_those_of_the_stock_forward(name: str, recompute: bool) -> None:
    denoiser, lengths = denoiser_of(name), [7, 12, 12]
    tokens = sequences(lengths)
    flat = torch.tensor([2, 6, 9, 31 - 1])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        used = [p for p in denoiser.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, used, allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    denoiser.stack.recompute = recompute
    try:
        pending = denoiser.start(torch.cat(tokens), denoiser.packing(whole(lengths)))
        ours = gradients(pending.hidden(flat, [2, 1, 1]).square().sum())
    finally:
        denoiser.stack.recompute = False
    theirs = gradients(torch.cat(stock(denoiser, tokens))[flat].square().sum())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3 * float(b.abs().max() + 1), rtol=1e-4)


def test_a_blocks_probe_equals_the_materialised_matrix() -> None:
    from models.block_probe import BlockProbe

    denoiser, lengths = denoiser_of("llada"), [12, 12, 17]
    tokens = sequences(lengths)
    packing = denoiser.packing(whole(lengths))
    place_SL = torch.tensor([[4, 5, 6, 7], [12 + 8, 12 + 9, 12 + 10, 12 + 8], [24 + 13, 24 + 14, 24 + 15, 24 + 16]])
    masked_SL = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    known_SN = torch.rand(3, 17, generator=torch.Generator().manual_seed(1)) < 0.5
    layers = frozenset({0, 2})
    column = BlockProbe("column", layers, place_SL=place_SL, masked_SL=masked_SL)
    row = BlockProbe("row", layers, place_SL=place_SL, masked_SL=masked_SL, known_SN=known_SN)
    for probe in (column, row):
        denoiser.start(torch.cat(tokens), packing, observer=probe)
    offsets = [0, 12, 24]
    for s, token_N in enumerate(tokens):
        slots = [int(place) - offsets[s] for place, m in zip(place_SL[s], masked_SL[s], strict=True) if m]
        rows = torch.zeros(1, len(token_N), dtype=torch.bool)
        rows[0, slots] = True
        sums = denoiser.attention_sums(
            token_N[None], rows=rows, cols=known_SN[s : s + 1, : len(token_N)], layers=[0, 2]
        )
        expected = (sums.col_sum_BT - sums.self_BT)[0, slots]
        torch.testing.assert_close(column.sums()[s][masked_SL[s]], expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(row.sums()[s][masked_SL[s]], sums.row_sum_BT[0, slots], atol=1e-6, rtol=1e-5)
    assert not column.sums()[~masked_SL].any()


@pytest.mark.parametrize("mode", ["default", "graphs"])
@torch.no_grad()
def test_compiled_layers_give_the_same_and_may_fill_a_forward_up(mode: str) -> None:
    """Through dynamo without its code generator: fixed sizes, fill tokens, and weights loaded in place afterwards."""
    denoiser, lengths = models.create(CONFIGS["llada"], seed=3).eval(), [13, 9, 9, 20]
    tokens = sequences(lengths)
    packing = denoiser.packing(whole(lengths))

    def packed() -> torch.Tensor:
        return denoiser.start(torch.cat(tokens), packing).hidden(torch.arange(packing.num_tokens), lengths)

    denoiser.stack.compile(mode, backend="eager")
    torch.testing.assert_close(packed(), torch.cat(stock(denoiser, tokens)), atol=1e-5, rtol=1e-5)
    for parameter in denoiser.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(packed(), torch.cat(stock(denoiser, tokens)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_tokens", "filled"), [(1, 16), (16, 16), (51, 64), (512, 512), (513, 544), (1000, 1024)])
def test_forwards_are_filled_up_by_a_sixteenth_at_most(num_tokens: int, filled: int) -> None:
    from models.compiled import Compiled

    assert Compiled("graphs", backend="eager").padded(num_tokens) == filled
    assert Compiled("default", backend="eager").padded(num_tokens) == num_tokens


def test_fused_projections_follow_their_weights() -> None:
    denoiser, lengths = models.create(CONFIGS["dream"], seed=3).eval(), [13, 9]
    tokens = sequences(lengths)
    packing = denoiser.packing(whole(lengths))
    denoiser.stack.fuse()
    with torch.no_grad():
        for change in ("in place", "elsewhere"):
            for parameter in denoiser.parameters():
                if change == "in place":
                    parameter.mul_(1.3)
                else:
                    parameter.data = parameter.data * 0.7
            pending = denoiser.start(torch.cat(tokens), packing)
            hidden = pending.hidden(torch.arange(packing.num_tokens), lengths)
            torch.testing.assert_close(hidden, torch.cat(stock(denoiser, tokens)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["weight", "bias"])
@torch.no_grad()
def test_a_parameter_put_in_the_place_of_a_fused_one_is_used(kind: str) -> None:
    denoiser, lengths = models.create(CONFIGS["dream"], seed=3).eval(), [13, 9]
    tokens = torch.cat(sequences(lengths))
    packing = denoiser.packing(whole(lengths))
    denoiser.stack.fuse()
    projection = denoiser.backbone.model.layers[1].self_attn.k_proj
    setattr(projection, kind, torch.nn.Parameter(getattr(projection, kind) * 2 + 0.5))
    hidden = denoiser.start(tokens, packing).hidden(torch.arange(packing.num_tokens), lengths)
    torch.testing.assert_close(hidden, torch.cat(stock(denoiser, [*tokens.split(lengths)])), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_layer_put_in_the_place_of_a_fused_one_is_used() -> None:
    denoiser, lengths = models.create(CONFIGS["llada"], seed=3).eval(), [13, 9]
    tokens = torch.cat(sequences(lengths))
    packing = denoiser.packing(whole(lengths))
    denoiser.stack.fuse()
    attention, feed_forward = denoiser.backbone.model.layers[1].self_attn, denoiser.backbone.model.layers[2].mlp
    for owner, name in ((attention, "k_proj"), (attention, "o_proj"), (feed_forward, "up_proj")):
        old = getattr(owner, name)
        doubled = torch.nn.Linear(old.in_features, old.out_features, bias=False)
        doubled.weight.copy_(2 * old.weight)
        setattr(owner, name, doubled)
        hidden = denoiser.start(tokens, packing).hidden(torch.arange(packing.num_tokens), lengths)
        expected = torch.cat(stock(denoiser, [*tokens.split(lengths)]))
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llada", "llada2"])
@torch.no_grad()
def test_rotary_angles_looked_up_equal_the_stock_modules_to_the_last_bit(name: str) -> None:
    module = denoiser_of(name).backbone.model.rotary_emb
    table = RotaryTable(module)
    for dtype, positions in ((torch.float32, [3, 0, 99]), (torch.float32, [7, 300, 1000]), (torch.bfloat16, [5, 260])):
        like, position = torch.zeros(1, dtype=dtype), torch.tensor(positions)
        for looked_up, worked_out in zip(
            table.at(like, position, max(positions) + 1), fresh(module, like, position), strict=True
        ):
            assert looked_up.dtype == dtype
            assert torch.equal(looked_up, worked_out)


def test_spans_that_follow_each_other_in_the_cache_are_one_stretch_of_it() -> None:
    denoiser = denoiser_of("llada")

    def stretch(*spans: Span) -> tuple[int, int] | None:
        packing = denoiser.packing(spans, max_length=24)
        found = packing.cache_range
        assert found is None or packing.cache_place.tolist() == list(range(*found))
        return found

    assert stretch(Span(2, 4, 9, 24)) == (52, 57)
    assert stretch(Span(0, 4, 24, 24), Span(1, 0, 24, 24), Span(2, 0, 3, 24)) == (4, 51)
    assert stretch(Span(0, 4, 9, 24), Span(1, 4, 9, 24)) is None
    assert stretch(Span(1, 0, 24, 24), Span(0, 0, 24, 24)) is None


def test_weights_are_laid_out_for_few_tokens_and_loaded_saved_and_trained_as_ever(tmp_path) -> None:
    denoiser, lengths = models.create(CONFIGS["llada"], seed=3).eval(), [13, 9]
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    denoiser.stack.fuse()
    layer = denoiser.backbone.model.layers[0]
    for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, denoiser.backbone.lm_head.weight):
        assert weight.stride(0) == 1
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())

    denoiser.stack.fuse()
    models.save(denoiser, tmp_path / "saved")
    again = models.load(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.items())

    other = models.create(CONFIGS["llada"], seed=4).eval()
    denoiser.load_state_dict(other.state_dict())
    tokens = sequences(lengths)
    packing = denoiser.packing(whole(lengths))
    for model in (denoiser, other):
        model.start(torch.cat(tokens), packing).hidden(
            torch.arange(packing.num_tokens), lengths
        ).square().sum().backward()
    for (name, mine), theirs in zip(denoiser.named_parameters(), other.parameters(), strict=True):
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5, msg=name)
