"""The service on Ray Serve: one deployment that speaks HTTP, and one of engines that scales with its queue.

    unmask serve --model tiny                       a Ray of its own, or the one that runs here
    serve deploy recipes/serve.yaml                 the same application on a cluster

`Front` holds the ASGI application; `EngineReplica` a `ModelHost`. A job travels to one engine and what is heard of it
travels back as a stream. If an engine is lost before anything of an answer was told, another one makes it: the same
seed gives the same answer. Both classes are thin; what they do is in `rollout.service`, without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ImportString
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from rollout.service.answers import Grade
from rollout.service.api import build_app
from rollout.service.config import EngineConfig, ServiceConfig
from rollout.service.follow import Follower
from rollout.service.gate import App
from rollout.service.host import ModelHost
from rollout.service.keys import digest_of, read_key
from rollout.service.work import Accepted, EngineState, Heard, Job, ModelCard, Refused

logger = logging.getLogger(__name__)

_TRIES = 3
_PAUSE_S = 0.25
"""Before another try, so that the router has heard of the loss."""
_LOST = Refused("lost", "the engine was lost before the answer was finished; send the request again")
_CARDS_FOR_S = 1.0
_ASK_S = 5.0
_MARGIN_S = 10.0


class ServeConfig(BaseModel):
    """Arguments of the application, in a Serve config file under `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    models: dict[str, str] = Field(default={"tiny": "tiny"}, min_length=1)
    """Folder, adapter, hub id or `tiny` by the name that clients use; the first is the default."""
    engine: EngineConfig = EngineConfig()
    service: ServiceConfig = ServiceConfig()
    min_replicas: int = Field(default=1, ge=1)
    """Engines at least."""
    max_replicas: int = Field(default=1, ge=1)
    """Engines at most."""
    target_ongoing_requests: float = Field(default=32, gt=0)
    """Requests, running and waiting, an engine; above it another one is started, below it one is drained."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=120, ge=0)
    drain_s: float | None = Field(default=None, ge=0)
    """How long an engine that is to go may finish what it has; None: somewhat longer than a request may take."""
    cpus_per_replica: float = Field(default=1, ge=0)
    gpus_per_replica: float = Field(default=0, ge=0)
    cpus_of_front: float = Field(default=0.5, ge=0)
    api_key_env: str | None = None
    """Environment variable that holds the key, where the application is built."""
    api_key_file: Path | None = None
    """File that holds it."""
    follow: Path | None = None
    """Folder of a training run whose checkpoints the default model follows."""
    follow_period_s: float = Field(default=5, gt=0)
    grader: ImportString[Grade] | None = None
    """`package.module:function` that grades answers of `/v1/rollouts` with a task."""

    @property
    def patience_s(self) -> float:
        """How long a process that is to go may finish what it has."""
        return self.service.limits.request_timeout_s + _MARGIN_S if self.drain_s is None else self.drain_s


def application(config: ServeConfig | Mapping[str, Any]) -> serve.Application:
    """The Serve application; `config` is a mapping where Serve itself builds it, from the `args` of a config file."""
    if not isinstance(config, ServeConfig):
        config = ServeConfig.model_validate(config)
    digest = digest_of(read_key(config.api_key_env, config.api_key_file))
    # Serve's default of 5 would cap the batch.
    ongoing = 4 * max(config.engine.max_batch_rows, int(config.target_ongoing_requests))
    engines = serve.deployment(
        name="engine",
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            metrics_interval_s=min(10.0, max(1.0, config.upscale_delay_s / 2)),
            look_back_period_s=max(2.0, config.upscale_delay_s),
        ),
        max_ongoing_requests=ongoing,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.patience_s,
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
            # Threads that spin at a barrier for one that has no core cost many times the work itself.
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        },
    )(EngineReplica)
    front = serve.deployment(
        name="front",
        max_ongoing_requests=2 * config.service.limits.max_concurrent,
        graceful_shutdown_timeout_s=config.patience_s,
        ray_actor_options={"num_cpus": config.cpus_of_front},
    )(serve.ingress()(Front))
    bound: serve.Application = front.bind(config, engines.bind(config), digest)
    return bound


class EngineReplica:
    """One engine process."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc] # Serve awaits it
        self._config = config
        self._name = serve.get_replica_context().replica_tag
        self._host = ModelHost(config.models, config.engine, replica=self._name)
        await self._host.start()
        self._following: asyncio.Task[None] | None = None
        if config.follow is not None:
            follower = Follower(self._host, next(iter(config.models)), config.follow, period_s=config.follow_period_s)
            self._following = asyncio.create_task(follower.run())

    async def run(self, job: Job) -> AsyncGenerator[list[Heard], None]:
        """What is heard of a job."""
        if job.model in self._host.sources and len(self._host.sources) > 1:
            await self._loaded(job.model)
        stream = self._host.run(job)
        try:
            async for batch in stream:
                yield batch
        finally:
            await stream.aclose()

    @serve.multiplexed(max_num_models_per_replica=64)
    async def _loaded(self, model_id: str) -> str:
        """Tells Serve's router which models this engine has met; the host decides which of them stay loaded."""
        await self._host.served(model_id)
        return model_id

    async def states(self) -> list[EngineState]:
        """Numbers of this process's engines."""
        return await self._host.states()

    async def cards(self) -> list[ModelCard]:
        """Models as this process has them."""
        return await self._host.models()

    async def check_health(self) -> None:
        """Raise where a restart would help."""
        if not self._host.is_healthy:
            raise RuntimeError("the engine's steps fail")


class Front:
    """The HTTP side."""

    def __init__(self, config: ServeConfig, engines: DeploymentHandle, digest: bytes | None) -> None:
        self._config, self._digest = config, digest
        self._backend = RayBackend(engines, list(config.models))

    def __serve_build_asgi_app__(self) -> App:
        """The application, in this replica."""
        config = self._config
        return build_app(self._backend, config.service, key_digest=self._digest, grade=config.grader)


class RayBackend:
    """Engines behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle, names: Sequence[str]) -> None:
        self._handle, self._names = handle, names
        self._cards: list[ModelCard] = []
        self._cards_until = 0.0

    async def run(self, job: Job) -> AsyncGenerator[list[Heard], None]:
        """What is heard of a job, from one engine; from another if the first is lost before it has told anything."""
        if job.model not in self._names:
            why = f"no model {job.model!r} is served here; served: {', '.join(self._names)}"
            yield [Refused("unknown_model", why, "model")]
            return
        until = asyncio.get_running_loop().time() + job.timeout_s
        accepted, told, ended = False, False, False
        lost = _LOST
        for attempt in range(_TRIES):
            await asyncio.sleep(_PAUSE_S * attempt)
            async with aclosing(self._once(job)) as stream:
                while not ended:
                    try:
                        # Never around a yield: a timeout belongs to the task that enters it.
                        async with asyncio.timeout_at(until):
                            batch = await anext(stream, None)
                    except TimeoutError:
                        batch = [Refused("timeout", f"the answer was not finished within {job.timeout_s:g} s")]
                    if batch is None:
                        return
                    if isinstance(batch[-1], Refused) and batch[-1].kind == "lost":
                        lost = batch[-1]
                        break
                    # A second engine accepts again; the client has heard it.
                    batch = [heard for heard in batch if not (accepted and isinstance(heard, Accepted))]
                    accepted = accepted or any(isinstance(heard, Accepted) for heard in batch)
                    told = told or any(not isinstance(heard, Accepted) for heard in batch)
                    ended = bool(batch) and isinstance(batch[-1], Refused)
                    if batch:
                        yield batch
            if told or ended:
                break
        if not ended:
            yield [lost]

    async def _once(self, job: Job) -> AsyncGenerator[list[Heard], None]:
        """One try; an engine that is lost ends it with a refusal of the kind `lost`."""
        handle = self._handle.options(stream=True)
        if len(self._names) > 1:
            handle = handle.options(multiplexed_model_id=job.model)
        response: Any = handle.run.remote(job)
        finished = False
        try:
            async for batch in response:
                yield batch
            finished = True
        except BackPressureError:
            yield [Refused("overloaded", "every engine is full; try again later")]
        except (RayError, RayServeException) as error:
            logger.warning("an engine was lost: %s", type(error).__name__)
            yield [_LOST]
        finally:
            if not finished:
                response.cancel()

    async def models(self) -> list[ModelCard]:
        """Cards of all models, from whichever engine has them loaded."""
        if time.monotonic() < self._cards_until:
            return self._cards
        found = {name: ModelCard(name) for name in self._names}
        for cards in await self._ask("cards"):
            found |= {card.name: card for card in cards if card.is_loaded}
        self._cards, self._cards_until = list(found.values()), time.monotonic() + _CARDS_FOR_S
        return self._cards

    async def states(self) -> list[EngineState]:
        """Numbers of every engine that answers."""
        return [state for states in await self._ask("states") for state in states]

    async def _ask(self, method: str) -> list[Any]:
        """What each engine says; nothing of those that do not answer."""
        try:
            answers = await self._handle.broadcast(method).results_async(timeout_s=_ASK_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError, RuntimeError) as error:
            logger.warning("engines do not answer: %s", error)
            return []
        return [answer for answer in answers if isinstance(answer, list)]
