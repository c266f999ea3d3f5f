"""What does not fit is refused before anything starts, with what is wanted, what there is and what to change."""

import pytest
import ray

from cluster.bundles import Need, PlacementError, check_placement, check_room, groups_of, train_needs
from cluster.config import SftRecipe, TrainRecipe
from cluster.placement import reserve

RECIPE = {"tasks": [{"name": "arithmetic"}]}


def needs(**sections):
    return train_needs(TrainRecipe.model_validate(RECIPE | sections))


def test_needs_are_those_of_learner_rollouts_and_graders():
    found = needs(rollout={"num_workers": 3, "gpus_per_worker": 0.5}, learner={"engine": {"num_ranks": 2}})
    assert [(need.role, need.count, need.resources) for need in found] == [
        ("learner", 2, {"CPU": 1.0}),
        ("rollout", 3, {"CPU": 1.0, "GPU": 0.5}),
        ("grader", 1, {"CPU": 0.25}),
    ]


def test_no_gpus_when_the_recipe_wants_two():
    wanted = needs(learner={"engine": {"num_ranks": 2, "gpus_per_rank": 1}})
    with pytest.raises(PlacementError) as error:
        check_room(wanted, {"head 1a2b3c": {"CPU": 8.0}})
    assert str(error.value).splitlines() == [
        "the cluster cannot hold this run: 2 GPU wanted together, 0 exist; no node has 1 CPU, 1 GPU for one learner",
        "wanted:",
        "  learner  2 x (1 CPU, 1 GPU)",
        "  rollout  1 x (1 CPU, 0 GPU)",
        "  grader   1 x (0.25 CPU, 0 GPU)",
        "there is:",
        "  head 1a2b3c: 8 CPU, 0 GPU",
        "change: add nodes, raise cluster.num_cpus (a Ray started by this run), or lower",
        "  learner.engine.num_ranks, cpus_per_rank, gpus_per_rank",
        "  rollout.num_workers, cpus_per_worker, gpus_per_worker",
        "  reward.num_workers, cpus_per_worker",
    ]


def test_an_actor_larger_than_every_node_is_refused_although_the_sum_fits():
    wanted = [Need("learner", 1, 4, 0, "PACK", "learner.engine.cpus_per_rank")]
    with pytest.raises(PlacementError, match="no node has 4 CPU, 0 GPU for one learner"):
        check_room(wanted, {"a": {"CPU": 3.0}, "b": {"CPU": 3.0}})


def test_what_just_fits_is_accepted():
    check_room(needs(), {"a": {"CPU": 2.25}})


def bundles(kind, **sections):
    """Strategy, and actors and resources of each bundle, of every group."""
    found = needs(cluster={"placement": kind}, **sections)
    return [
        (group.strategy, [(str(bundle), dict(bundle.resources)) for bundle in group.bundles])
        for group in groups_of(found, kind)
    ]


ON_GPUS = {
    "learner": {"engine": {"num_ranks": 2, "gpus_per_rank": 0.6}},
    "rollout": {"num_workers": 3, "gpus_per_worker": 0.2},
}


def test_spread_keeps_the_learner_together_and_rollouts_apart():
    learner, rollout = {"CPU": 1, "GPU": 0.6}, {"CPU": 1, "GPU": 0.2}
    rollouts = [(f"rollout-{number}", rollout) for number in range(3)]
    assert bundles("spread", **ON_GPUS) == [
        ("PACK", [("learner-0", learner), ("learner-1", learner)]),
        ("SPREAD", [*rollouts, ("grader-0", {"CPU": 0.25})]),
    ]


def test_split_packs_rollouts_beside_the_learner_on_resources_of_their_own():
    (pack, together), (spread, graders) = bundles("split", **ON_GPUS)
    assert (pack, [name for name, _ in together]) == (
        "PACK",
        ["learner-0", "learner-1", "rollout-0", "rollout-1", "rollout-2"],
    )
    assert (spread, graders) == ("SPREAD", [("grader-0", {"CPU": 0.25})])


def test_colocated_workers_take_turns_at_the_bundles_of_the_ranks():
    # 0.6 + 2 * 0.2 and 0.6 + 0.2 of a GPU; three CPUs and two
    assert bundles("colocated", **ON_GPUS)[0] == (
        "PACK",
        [
            ("learner-0 with rollout-0 with rollout-2", {"CPU": 3, "GPU": 1.0}),
            ("learner-1 with rollout-1", {"CPU": 2, "GPU": 0.8}),
        ],
    )


def test_colocated_bundles_have_to_fit_a_node_as_a_whole():
    wanted = needs(cluster={"placement": "colocated"}, **ON_GPUS)
    check_room(wanted, {"a": {"CPU": 3.0, "GPU": 1.0}, "b": {"CPU": 3.0, "GPU": 1.0}}, "colocated")
    with pytest.raises(PlacementError, match="no node has 3 CPU, 1 GPU for one learner with 2 rollout"):
        check_room(wanted, {"a": {"CPU": 2.0, "GPU": 1.0}, "b": {"CPU": 5.0, "GPU": 0.8}}, "colocated")


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ((0.6, 0.5), "one rank and 1 of 2 rollout workers would take 1.1 of one GPU"),
        ((1, 0), "both must have a share of the GPU"),
        ((0, 0.5), "both must have a share of the GPU"),
    ],
)
def test_colocated_shares_that_cannot_be_are_refused(shares, text):
    recipe = TrainRecipe.model_validate(
        RECIPE
        | {
            "learner": {"engine": {"num_ranks": 2, "gpus_per_rank": shares[0]}},
            "rollout": {"num_workers": 2, "gpus_per_worker": shares[1]},
            "cluster": {"placement": "colocated"},
        }
    )
    with pytest.raises(ValueError, match=text):
        check_placement(recipe, is_given=True)


def test_a_placement_without_effect_is_a_warning():
    local = TrainRecipe.model_validate(RECIPE | {"cluster": {"mode": "local", "placement": "split"}})
    (warning,) = check_placement(local, is_given=True)
    assert "no effect with cluster.mode 'local'" in warning
    sft = SftRecipe.model_validate(RECIPE | {"cluster": {"placement": "split"}})
    (warning,) = check_placement(sft, is_given=True)
    assert "no rollout workers" in warning
    assert check_placement(local, is_given=False) == []
    on_cpus = TrainRecipe.model_validate(RECIPE | {"cluster": {"placement": "colocated"}})
    assert check_placement(on_cpus, is_given=True) == []


@pytest.mark.ray
def test_reservation_is_given_back_and_a_busy_cluster_is_refused_in_time(local_ray):
    wanted = [Need("learner", 3, 1, 0, "PACK", "learner.engine.num_ranks")]
    with reserve("one", wanted, timeout_s=30) as placement:
        assert placement.bundle("learner", 2)[1] == 2
        assert placement.bundle("grader", 0) is None
        with (
            pytest.raises(PlacementError, match=r"not enough was free within 1 s \(cluster\.placement_timeout_s\)"),
            reserve("two", wanted, timeout_s=1),
        ):
            pass
    with reserve("three", wanted, timeout_s=30):
        pass
    assert ray.cluster_resources()["CPU"] == 4
