import torch

from benchmarks.finding import prompts
from benchmarks.models import llada_config, on_device
from benchmarks.weights import publish_tensors, publish_views, through_memory


def test_neither_mask_nor_end_token_is_predicted(small, small_block_causal):
    for denoiser in (small, small_block_causal):
        with torch.no_grad():
            logits_V = denoiser.logits(prompts(2, 16)).flatten(0, 1)
        best = set(logits_V.argmax(-1).tolist())
        assert not best & {denoiser.mask_token_id, denoiser.eos_token_id}
        assert logits_V[:, denoiser.eos_token_id].abs().max() == 0


def test_the_same_seed_gives_the_same_weights():
    config = llada_config(width=16, layers=1, heads=1, ffn=16, vocabulary=32)
    one, same, other = (on_device(config, seed=seed).backbone.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_have_the_type_that_was_asked_for_and_rotary_frequencies_stay_exact():
    config = llada_config(width=16, layers=1, heads=1, ffn=16, vocabulary=32)
    low, full = on_device(config, dtype=torch.bfloat16), on_device(config)
    assert low.backbone.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(low.backbone.model.rotary_emb.inv_freq, full.backbone.model.rotary_emb.inv_freq)


def test_published_weights_arrive_bit_for_bit_both_ways():
    config = llada_config(width=16, layers=1, heads=1, ffn=16, vocabulary=32)
    source = on_device(config, dtype=torch.bfloat16, seed=1).requires_grad_(True)
    size = sum(2 * parameter.numel() for parameter in source.parameters())
    for publish in (publish_views, publish_tensors):
        target = on_device(config, dtype=torch.bfloat16, seed=2)
        assert publish(source, target, through_memory) == size
        pairs = zip(source.parameters(), target.parameters(), strict=True)
        assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in pairs)
