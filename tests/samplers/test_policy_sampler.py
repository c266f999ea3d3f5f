"""The policy as a sampler: progress, fallback, budget, and the record of its choices; and policies on disk."""

from dataclasses import replace

import pytest
import torch

import samplers
from samplers.policy.config import NetworkConfig, PolicySettings
from samplers.policy.files import SHIPPED, WEIGHTS, load_policy, save_policy
from samplers.policy.laws import law
from samplers.policy.network import PolicyNetwork
from samplers.policy.sampler import PolicySampler
from tests.samplers.table_model import TableModel, columns, fill, one_step, state_of, tops


def forced(value: float, name: str = "bernoulli", **fields) -> PolicySampler:
    """A policy that answers with the same logit everywhere."""
    network = PolicyNetwork(NetworkConfig(width=8, ffn_width=8, output_bias=value)).eval()
    with torch.no_grad():
        network.output.weight.zero_()
    return PolicySampler("policy", network, law(name), **fields)


@pytest.mark.parametrize("name", ["bernoulli", "dpls"])
def test_sure_policy_commits_a_block_in_one_step_and_unsure_one_a_slot_a_step(name) -> None:
    table = tops(0.6, 0.9, 0.7, 0.8)
    for value, steps in ((40.0, 1), (-40.0, 4)):
        _, commits = fill(forced(value, name), lambda token, masked: TableModel(table), rows=3, length=4, temperature=0)
        assert len(commits) == steps
        assert sum(len(commit.row_K) for commit in commits) == 12


def test_empty_action_commits_the_slot_of_highest_probability_or_logit() -> None:
    table = tops(0.6, 0.9, 0.7, 0.8)
    assert columns(one_step(forced(-40.0, fallback="confidence"), table)) == [1]
    by_logit = forced(-40.0, fallback="logit")
    assert columns(one_step(by_logit, table)) == [0]  # all logits are equal: the lowest slot
    with torch.no_grad():
        by_logit.network.read.weight.normal_(generator=torch.Generator().manual_seed(0))
        by_logit.network.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    masked = torch.ones(1, 4, dtype=torch.bool)
    logits = by_logit.network(table[None, :, :1], masked, torch.zeros(1), masked)
    assert columns(one_step(by_logit, table)) == [int(logits.argmax())]


def test_probability_of_a_forced_choice_is_one() -> None:
    table = tops(0.6, 0.9, 0.7)
    for value in (40.0, -40.0):
        commit = one_step(forced(value, fallback="confidence"), table)
        assert commit.position_logprob_R.tolist() == pytest.approx([0.0], abs=1e-5)


def test_step_budget_stands_before_the_policy() -> None:
    commit = one_step(forced(40.0), tops(0.6, 0.9, 0.7, 0.8), block_steps_R=torch.tensor([2]))
    assert columns(commit) == [0, 1]  # 4 slots in 2 steps; equal logits, so the lower slots
    assert commit.position_logprob_R.tolist() == [0.0]


def test_end_guard_holds_back_predicted_ends() -> None:
    probability = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]])  # token 2 ends an answer
    guarded = one_step(forced(40.0), probability, whole_response=True)
    assert columns(guarded) == [0, 2]
    assert columns(one_step(forced(40.0, eos_guard=False), probability, whole_response=True)) == [0, 1, 2]


def test_masked_slots_beyond_the_block_are_seen_and_not_committed() -> None:
    # The block is columns 0 and 1 of an answer of four slots; a table answers for all four.
    masked = torch.ones(1, 2, dtype=torch.bool)
    state = state_of(masked)
    everything = torch.ones(1, 4, dtype=torch.bool)
    state = replace(
        state, response=replace(state.response, masked_RT=everything, seen_RT=everything, length_R=torch.tensor([4]))
    )
    table = TableModel(tops(0.6, 0.9, 0.7, 0.8))
    assert columns(forced(40.0).step(state, table)) == [0, 1]
    assert table.asked == [4]


def test_policy_survives_the_disk(tmp_path) -> None:
    torch.manual_seed(5)
    network = PolicyNetwork(NetworkConfig(width=16, num_probs=3))
    settings = PolicySettings(network=network.config, temperature=0.5, fallback="confidence", trained={"alpha": 3.0})
    save_policy(tmp_path / "p", network.state_dict(), settings, card="# card\n")
    loaded, found = load_policy(tmp_path / "p")
    assert found == settings
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert (tmp_path / "p" / "README.md").read_text() == "# card\n"
    sampler = samplers.build("policy", path=str(tmp_path / "p"), beta=2.0)
    assert (sampler.law.temperature, sampler.law.beta, sampler.fallback) == (0.5, 2.0, "confidence")


def test_shipped_policy_is_small_and_of_the_released_form() -> None:
    assert (SHIPPED / WEIGHTS).stat().st_size <= 1_500_000
    network, settings = load_policy()
    assert sum(p.numel() for p in network.parameters()) == 331265
    assert settings.trained["model"] == "tiny"
    assert (SHIPPED / "README.md").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no unmasking policy at"),
        (lambda path: path.write_bytes(b"no tensors") and path, "is not a safetensors file"),
    ],
)
def test_bad_policy_file_is_refused_with_what_is_wrong(tmp_path, make, message) -> None:
    with pytest.raises(ValueError, match=message):
        samplers.build("policy", path=str(make(tmp_path / "policy.safetensors")))


def test_policy_of_another_size_is_refused(tmp_path) -> None:
    weights = PolicyNetwork(NetworkConfig(width=8)).state_dict()
    save_policy(tmp_path, weights, PolicySettings(network=NetworkConfig(width=16)))
    with pytest.raises(ValueError, match="is damaged or of another version"):
        load_policy(tmp_path)


def test_weights_of_something_else_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="holds no unmasking policy"):
        load_policy(tmp_path)
