"""The one place that connects to Ray.

Which cluster: a process inside a submitted job joins the cluster it was submitted to (`ray job submit` sets
RAY_ADDRESS for it, and so may anyone); otherwise `cluster.address` decides: `local` starts a Ray of its own, `auto`
joins the one that runs on this machine, anything else is an address. No runtime environment is passed: a job has its
own, and repeating a field of it is an error.

Tokens: a plain local `ray.init()` writes an authentication token into the user's home folder. A cluster started there
later with `ray start` finds the file and asks for the token, and `ray job submit` answers 401. A Ray started here
therefore gets a token of its own in this process's environment: protected (its ports listen on all interfaces), and no
file is left behind. Whoever sets RAY_AUTH_MODE decides instead.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.config import ClusterConfig
from cluster.idle_threads import let_idle_threads_sleep

logger = logging.getLogger(__name__)


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Ray for the body, where `cluster.mode` wants one; a connection that exists already is used and left alone."""
    if config.mode == "local" or ray.is_initialized():
        yield
        return
    _connect(config)
    try:
        yield
    finally:
        ray.shutdown()


def cluster_address(config: ClusterConfig) -> str:
    """Where to connect: the job's cluster, else what the recipe says."""
    from_environment = os.environ.get("RAY_ADDRESS", "")
    # An http address is the dashboard's, meant for the command line of `ray job`.
    return "auto" if from_environment and not from_environment.startswith("http") else config.address


def _connect(config: ClusterConfig) -> None:
    address = cluster_address(config)
    starts_own = address == "local"
    if starts_own:
        _use_private_token()
        let_idle_threads_sleep()
    try:
        ray.init(
            address=address,
            num_cpus=config.num_cpus if starts_own else None,
            include_dashboard=False if starts_own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ray.exceptions.AuthenticationError as error:
        raise ValueError(
            f"the Ray cluster at {address!r} refused this process: {error}\n"
            "Give it the token of the cluster (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or ~/.ray/auth_token); in a "
            "closed container, RAY_AUTH_MODE=disabled on both sides also does."
        ) from error
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}).\nStart one with `ray start --head`, correct "
            "cluster.address or RAY_ADDRESS, or use `cluster.address: local` to start Ray on this machine."
        ) from error
    logger.info("connected to Ray at %s", ray.get_runtime_context().gcs_address)


def _use_private_token() -> None:
    """A token in the environment, so that Ray writes none; one for the whole process, because Ray keeps the first."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
