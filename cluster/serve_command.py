"""`unmask serve`: the rollout service, on Ray Serve or with `--local` in this process."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rollout.serve import ServeConfig

logger = logging.getLogger(__name__)

KEY_ADVICE = (
    "put a key into the environment and name the variable (--api-key-env UNMASK_API_KEY), or keep it in a file and "
    "give --api-key-file; or bind to 127.0.0.1"
)
GRADER = "cluster.serve_grading:grader"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(  # noqa: PLR0913 - an argument an option
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="[NAME=]M", help="A model folder, adapter, hub id, or `tiny`; may be repeated."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; beyond loopback a key is needed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="File that holds the key.")] = None,
    follow: Annotated[
        Path | None, typer.Option("--follow", metavar="RUN", help="Take over each checkpoint of a training run.")
    ] = None,
    min_replicas: Annotated[int, typer.Option("--min-replicas", min=1, help="Engines at least.")] = 1,
    max_replicas: Annotated[int | None, typer.Option("--max-replicas", min=1, help="Engines at most.")] = None,
    max_batch_rows: Annotated[int, typer.Option("--max-batch-rows", min=1, help="Sequences an engine denoises.")] = 64,
    max_batch_tokens: Annotated[int, typer.Option("--max-batch-tokens", min=1, help="Their canvas tokens.")] = 16384,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Limit of one answer.")] = 1024,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of an engine's products on a CPU.")] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="Web origin that may call; may be repeated.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="One engine in this process, without Ray.")] = False,
) -> None:
    """Serve models over HTTP: OpenAI's interface, rollouts with their whole history, infill."""
    from cluster.idle_threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    from pydantic import ValidationError

    from rollout.serve import ServeConfig
    from rollout.service.gate import is_loopback
    from rollout.service.keys import read_key

    if read_key(api_key_env, api_key_file) is None and not is_loopback(host):
        raise ValueError(f"--host {host} can be reached from other machines and no key is set: {KEY_ADVICE}")
    try:
        config = ServeConfig.model_validate(
            {
                "models": models_of(model, follow),
                "engine": {
                    "max_batch_rows": max_batch_rows,
                    "max_batch_tokens": max_batch_tokens,
                    "threads": threads,
                    "dtype": dtype,
                },
                "service": {"limits": {"max_new_tokens": max_new_tokens}, "cors_origins": cors_origin or []},
                "min_replicas": min_replicas,
                "max_replicas": max(min_replicas, max_replicas or min_replicas),
                "api_key_env": api_key_env,
                "api_key_file": None if api_key_file is None else api_key_file.resolve(),
                "follow": None if follow is None else follow.resolve(),
                "grader": GRADER,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}") from None
    if local:
        serve_here(config, host=host, port=port)
    else:
        serve_on_ray(config, host=host, port=port)


def models_of(given: list[str] | None, follow: Path | None) -> dict[str, str]:
    """Paths by the names that clients use: `NAME=PATH`, or a path whose last part is the name. A run that is followed
    is served from its newest checkpoint where no model is given."""
    if not given and follow is not None:
        from rollout.service.follow import newest

        found = newest(follow)
        if found is None:
            raise ValueError(
                f"--follow {follow} has no complete checkpoint yet; say what to serve until then: --model BASE"
            )
        return {follow.resolve().name: str(found[1].resolve())}
    models: dict[str, str] = {}
    for text in given or ["tiny"]:
        name, has_name, path = text.partition("=")
        if not has_name:
            name, path = Path(text).name, text
        if not name or not path:
            raise ValueError(f"--model {text}: give a model, or NAME=MODEL")
        if name in models:
            raise ValueError(f"--model {text}: the name {name!r} is taken by {models[name]}; give another NAME=")
        models[name] = str(Path(path).resolve()) if Path(path).exists() else path
    return models


def serve_here(config: ServeConfig, *, host: str, port: int) -> None:
    """The service in this process, until it is told to end."""
    from rollout.service.keys import read_key
    from rollout.service.local import local_app, server_of

    app, _ = local_app(
        config.models,
        engine=config.engine,
        service=config.service,
        api_key=read_key(config.api_key_env, config.api_key_file),
        follow=config.follow,
        grade=config.grader,
    )
    _say(config, host, port)
    server_of(app, host=host, port=port).run()


def serve_on_ray(config: ServeConfig, *, host: str, port: int) -> None:
    """The application on Ray Serve, until this process is told to end; what is under way is finished first."""
    from ray import serve as ray_serve

    from cluster.config import ClusterConfig
    from cluster.ray_start import ray_session
    from rollout.serve import application

    with ray_session(ClusterConfig(mode="ray")):
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "keep_alive_timeout_s": 5})
        ray_serve.run(application(config), name="unmask", route_prefix="/")
        _say(config, host, port)
        ended = threading.Event()
        # After Ray has started: it replaces handlers that were set before.
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            ended.wait()
        except KeyboardInterrupt:
            pass
        finally:
            ray_serve.delete("unmask")
            ray_serve.shutdown()


def _say(config: ServeConfig, host: str, port: int) -> None:
    from cluster.terminal import console

    names = ", ".join(config.models)
    console().print(f"serving {names} at http://{host}:{port} (the page at /, the interface under /v1); Ctrl-C ends it")
