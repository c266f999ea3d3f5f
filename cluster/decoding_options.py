"""How answers are denoised, as options of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rollout.config import DecodingConfig

Model = Annotated[str, typer.Option("--model", metavar="M", help="A model folder, a hub id, or `tiny`.")]
DecodingOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="sampler.X=Y", help="An option of the sampler, or of the cache (cache.X=Y)."),
]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Response slots.")]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", min=1, help="Slots per block; the whole answer if not given.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps for the whole answer.")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus of the token draw.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same answers.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option("--dtype", help="Precision of the weights.")]
BatchTokens = Annotated[int, typer.Option("--max-batch-tokens", min=1, help="Canvas tokens denoised at once.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="KIND", help="Keys and values kept between forwards: none, block, prefix, dual."),
]


def decoding_of(
    *, sampler: str | None, options: list[str] | None, cache: str | None, **settings: Any
) -> DecodingConfig:
    """Decoding settings from the options that were given; the others keep their defaults."""
    import samplers
    from cluster.recipe import parse_override
    from rollout.config import DecodingConfig
    from samplers.config import SamplerConfig

    chosen: dict[str, dict[str, Any]] = {"sampler": {}, "cache": {} if cache is None else {"kind": cache}}
    for text in options or []:
        key, value = parse_override(text)
        section, _, name = key.partition(".")
        if section not in chosen or not name:
            raise ValueError(
                f"--set {text}: only options of the sampler and of the cache can be set here, for instance "
                "sampler.tau=0.9 or cache.refresh=window"
            )
        chosen[section][name.removeprefix("options.")] = value
    named = {} if sampler is None else {"name": sampler.strip()}
    config = SamplerConfig(**named, options=chosen["sampler"])
    samplers.build(config.name, **config.options)
    given = {name: value for name, value in settings.items() if value is not None}
    return DecodingConfig(sampler=config, cache=_policy(chosen["cache"]), **given)


def _policy(fields: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from cluster.errors import Problem, RecipeError, explain
    from rollout.config import CacheConfig

    try:
        return CacheConfig(**fields)
    except ValidationError as error:
        found = [(details["loc"][0], explain(details, CacheConfig)) for details in error.errors()]
        problems = [Problem("", f"cache.{key}", problem.what, problem.known) for key, problem in found]
        raise RecipeError("command line", problems) from error
