"""`unmask serve`: the rollout service, on Ray Serve or with `--local` in this process."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

KEY_ADVICE = (
    "put a key into the environment and name the variable (--api-key-env UNMASK_API_KEY), or keep it in a file and "
    "give --api-key-file; or bind to 127.0.0.1"
)
_MIN_KEY = 16


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="[NAME=]M", help="A model folder, adapter, hub id, or `tiny`; may be repeated."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; beyond loopback a key is needed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="File that holds the key.")] = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
) -> None:
    """Serve models over HTTP: OpenAI's interface, rollouts with their whole history, infill."""
    models = models_of(model or ["tiny"])
    api_key = read_key(api_key_env, api_key_file)
    check_bind(host, api_key)
    from rollout.service.local import local_app, server_of

    app, _ = local_app(models, api_key=api_key)
    server_of(app, host=host, port=port).run()


def models_of(given: list[str]) -> dict[str, str]:
    """Paths by the names that clients use: `name=path`, or a path whose last part is the name."""
    models: dict[str, str] = {}
    for text in given:
        name, has_name, path = text.partition("=")
        if not has_name:
            name, path = Path(text).name, text
        if not name or not path:
            raise ValueError(f"--model {text}: give a model, or NAME=MODEL")
        if name in models:
            raise ValueError(f"--model {text}: the name {name!r} is taken by {models[name]}; give another NAME=")
        models[name] = path
    return models


def read_key(variable: str | None, file: Path | None) -> str | None:
    """The key that clients must send, from the environment or a file; never from the command line, which others see."""
    if variable is not None and file is not None:
        raise ValueError("give one of --api-key-env and --api-key-file")
    if variable is None and file is None:
        return None
    if variable is not None:
        where, key = f"the environment variable {variable}", os.environ.get(variable, "").strip()
    else:
        assert file is not None
        where, key = str(file), file.read_text(encoding="utf-8").strip()
    if len(key) < _MIN_KEY or not key.isascii() or any(letter.isspace() for letter in key):
        raise ValueError(
            f"{where} holds {len(key)} characters; a key is at least {_MIN_KEY} of printable ASCII, for instance the "
            'output of: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def check_bind(host: str, api_key: str | None) -> None:
    """Refuse to listen to other machines without a key."""
    if api_key is None and not is_loopback(host):
        raise ValueError(f"--host {host} can be reached from other machines and no key is set: {KEY_ADVICE}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
