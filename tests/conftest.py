"""What the tests of several rooms share: one local Ray, and a random character model in the published layout."""

import pytest

SMALL_MODEL = {"d_model": 32, "mlp_hidden_size": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Folder of a two-layer LLaDA of random weights with the character tokenizer."""
    import models

    folder = tmp_path_factory.mktemp("models") / "small"
    config = models.TINY_CONFIG | SMALL_MODEL
    models.save(models.create(config, tokenizer=models.character_tokenizer(), seed=7), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_service():
    """Address of the HTTP service on the built-in model, in this process and without a key."""
    from rollout.service.local import local_app, running

    app, _ = local_app({"tiny": "tiny"})
    with running(app) as address:
        yield address


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of four logical CPUs on this machine, shared by every test that needs one."""
    from cluster.config import ClusterConfig
    from cluster.ray_start import ray_session

    with ray_session(ClusterConfig(mode="ray", address="local", num_cpus=4)):
        yield
