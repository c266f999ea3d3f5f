"""A served model takes over the checkpoints of a run while requests are under way."""

import asyncio
import shutil

import pytest
import torch

import models
from models.config import LoraConfig
from rollout.service.config import EngineConfig
from rollout.service.follow import Follower, newest
from rollout.service.host import ModelHost
from rollout.service.work import Done, Job

JOB = Job("m", seed=1, text="1+1=", max_new_tokens=60, sampler="ar", temperature=5.0, num_samples=2)


def publish(run, step: int, denoiser) -> None:
    """A checkpoint as a run leaves it: state.json comes last."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    models.save(denoiser, folder / "model")
    (folder / "state.json").write_text("{}")


def changed(folder, seed: int):
    denoiser = models.load(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return denoiser


async def answers(host: ModelHost, job: Job = JOB) -> list[Done]:
    return [heard async for batch in host.run(job) for heard in batch if isinstance(heard, Done)]


def test_the_newest_complete_checkpoint_counts(tmp_path, small_model) -> None:
    assert newest(tmp_path) is None
    for step in (5, 100):
        publish(tmp_path, step, models.load(small_model))
    shutil.copytree(tmp_path / "checkpoints/step_000100/model", tmp_path / "checkpoints/step_000200/model")
    assert newest(tmp_path) == (100, tmp_path / "checkpoints/step_000100/model")


def test_new_weights_are_taken_over_and_no_request_is_dropped(tmp_path, small_model) -> None:
    async def main() -> None:
        host = ModelHost({"m": str(small_model)}, EngineConfig())
        follower = Follower(host, "m", tmp_path)
        assert not await follower.look()
        before = await answers(host)
        publish(tmp_path, 7, changed(small_model, 1))
        under_way = [asyncio.create_task(answers(host)) for _ in range(4)]
        assert await follower.look()
        assert not await follower.look()
        for task in under_way:
            for done in await task:
                assert done.weights_version in ((0, 0), (0, 7), (7, 7))
                assert done.length > 0
        after = await answers(host)
        assert {done.weights_version for done in after} == {(7, 7)}
        fresh = await answers(ModelHost({"m": str(tmp_path / "checkpoints/step_000007/model")}, EngineConfig()))
        assert [done.tokens for done in after] == [done.tokens for done in fresh]
        assert [done.tokens for done in after] != [done.tokens for done in before]

    asyncio.run(main())


def test_a_checkpoint_that_does_not_fit_leaves_the_old_weights(tmp_path, small_model) -> None:
    async def main() -> None:
        host = ModelHost({"m": str(small_model)}, EngineConfig())
        before = await answers(host)
        follower = Follower(host, "m", tmp_path)
        other = models.TINY_CONFIG | {
            "d_model": 16,
            "mlp_hidden_size": 32,
            "n_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
        }
        publish(tmp_path, 3, models.create(other, tokenizer=models.character_tokenizer(), seed=1))
        assert not await follower.look()
        publish(tmp_path, 4, models.load(small_model))
        (tmp_path / "checkpoints/step_000004/model/model.safetensors").write_bytes(b"cut")
        assert not await follower.look()
        assert follower.failures == 2
        assert [done.tokens for done in await answers(host)] == [done.tokens for done in before]

    asyncio.run(main())


def test_several_models_are_served_by_name_and_the_idlest_goes(tmp_path, small_model) -> None:
    base = models.load(small_model)
    models.apply_lora(base, LoraConfig(rank=2))
    with torch.no_grad():
        for value in models.lora_state(base).values():
            value.normal_(generator=torch.Generator().manual_seed(2)).mul_(2)
    models.save(base, tmp_path / "adapter")

    async def main() -> None:
        sources = {"base": str(small_model), "adapter": str(tmp_path / "adapter"), "other": "tiny"}
        host = ModelHost(sources, EngineConfig(max_loaded=2))
        found = {name: await answers(host, Job(name, 1, 12, text="1+1=")) for name in sources}
        assert found["base"][0].tokens != found["adapter"][0].tokens
        assert sorted(host._served) == ["adapter", "other"]
        again = await answers(host, Job("base", 1, 12, text="1+1="))
        assert again[0].tokens == found["base"][0].tokens
        assert sorted(host._served) == ["base", "other"]

    asyncio.run(main())


def test_adapters_use_the_weights_of_their_base(tmp_path, small_model) -> None:
    base = models.load(small_model)
    models.apply_lora(base, LoraConfig(rank=2))
    models.save(base, tmp_path / "adapter")

    async def main() -> None:
        host = ModelHost({"base": str(small_model), "adapter": str(tmp_path / "adapter")}, EngineConfig())
        plain, adapted = await host.served("base"), await host.served("adapter")
        theirs = dict(adapted.denoiser.backbone.named_parameters())
        shared = [
            name for name, value in plain.denoiser.backbone.named_parameters()
            if any(value.data_ptr() == other.data_ptr() for other in theirs.values())
        ]  # fmt: skip
        assert len(shared) == len(list(plain.denoiser.backbone.named_parameters()))

    asyncio.run(main())


def test_unknown_names_are_refused(small_model) -> None:
    async def main() -> None:
        host = ModelHost({"m": str(small_model)}, EngineConfig())
        with pytest.raises(ValueError, match="served: m"):
            await host.served("n")

    asyncio.run(main())
