"""Which Ray a run joins, and that starting one leaves nothing behind."""

import os
from pathlib import Path

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.ray_start import cluster_address, ray_session


def test_a_submitted_job_joins_its_cluster_whatever_the_recipe_says(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(ClusterConfig(address="local")) == "auto"


@pytest.mark.parametrize("value", ["", "http://127.0.0.1:8265"])
def test_otherwise_the_recipe_decides(monkeypatch, value):
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address(ClusterConfig(address="local")) == "local"


def test_local_mode_starts_no_ray():
    connected = ray.is_initialized()
    with ray_session(ClusterConfig(mode="local")):
        assert ray.is_initialized() == connected


@pytest.mark.ray
def test_an_existing_connection_is_used_and_left_alone(local_ray):
    with ray_session(ClusterConfig(address="127.0.0.1:1")):
        assert ray.is_initialized()
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_local_ray_is_protected_by_a_token_that_is_in_no_file(local_ray):
    token_file = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_MODE") == "token":
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert not token_file.exists() or token_file.read_text() != os.environ["RAY_AUTH_TOKEN"]
