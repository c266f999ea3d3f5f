"""What does not fit is refused before anything starts, with what is wanted, what there is and what to change."""

import pytest
import ray

from cluster.config import TrainRecipe
from cluster.placement import Need, PlacementError, check_room, reserve, train_needs

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
