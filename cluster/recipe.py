"""Recipes: a YAML file plus `--set a.b=c`, checked against the settings of every room, with the origin of each value.

loaded = load("recipes/quickstart.yaml", TrainRecipe, overrides=["learner.optimizer.lr=3e-5"])
loaded.recipe.learner.optimizer.lr      3e-05
loaded.origin("learner.optimizer.lr")   "command line"
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cluster.config import PolicyRecipe, SftRecipe, TrainRecipe
from cluster.errors import Problem, RecipeError, explain, untagged

Origin = Literal["default", "recipe", "command line"]
R = TypeVar("R", TrainRecipe, SftRecipe, PolicyRecipe)


@dataclass(frozen=True)
class Setting:
    """One resolved value."""

    key: str
    """Dotted path: `learner.optimizer.lr`, `tasks.0.name`."""
    value: Any
    origin: Origin


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """A checked recipe and where its values come from."""

    recipe: R
    source: Path
    in_file: frozenset[str]
    """Dotted paths of the values that the file gives."""
    overridden: frozenset[str]
    """Dotted paths given by `--set`."""

    def origin(self, key: str) -> Origin:
        """Where the value of a setting comes from; the command line wins over the file."""
        if _touches(key, self.overridden):
            return "command line"
        return "recipe" if _touches(key, self.in_file) else "default"

    def settings(self) -> list[Setting]:
        """Every value of the recipe in the order of the configuration."""
        return [Setting(key, value, self.origin(key)) for key, value in _leaves(self.recipe, "")]


def load(path: str | Path, kind: type[R], *, overrides: Sequence[str] = ()) -> Loaded[R]:
    """Read, override and check a recipe. All problems come in one `RecipeError`, with line, key and what is allowed."""
    return check(read(path, overrides), kind)


@dataclass(frozen=True)
class Draft:
    """What a file and `--set` say, not yet checked."""

    source: Path
    data: dict[str, Any]
    lines: Mapping[str, int]
    """Line of each dotted key of the file."""
    in_file: frozenset[str]
    given: Mapping[str, str]
    """Text of each `--set` by its dotted key."""


def read(path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """Read and override a file."""
    source = Path(path)
    data, lines = _read(source)
    in_file = frozenset(_paths(data, ""))
    given: dict[str, str] = {}
    for text in overrides:
        key, value = parse_override(text)
        _put(data, key, value, text)
        given[key] = text
    return Draft(source, data, lines, in_file, given)


def check(draft: Draft, kind: type[R]) -> Loaded[R]:
    """The recipe, or a `RecipeError` with every problem."""
    try:
        recipe = kind.model_validate(draft.data)
    except ValidationError as error:
        problems = _problems(error, kind, draft.lines, draft.given, draft.data)
        raise RecipeError(str(draft.source), problems) from None
    return Loaded(recipe, draft.source, draft.in_file, frozenset(draft.given))


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as a dotted key and a value read as YAML, so that `1e-5`, `[a, b]` and `null` mean what they say."""
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise ValueError(f"--set {text!r}: write a key and a value, for instance --set learner.optimizer.lr=1e-5")
    try:
        return key, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text!r}: the value is not YAML ({_first_line(error)}); quote it") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-5 is a number, not a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), list("-+.0123456789")
)


def _read(source: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Content of a recipe and the line of each dotted key."""
    try:
        loader = _Loader(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise RecipeError(str(source), [_unreadable(source, error)]) from error
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(str(source), [Problem("", "", "holds no settings; a recipe is a mapping of keys")])
        lines: dict[str, int] = {}
        for key, line in _node_lines(node, ""):
            if key in lines:
                why = f"is given twice, on lines {lines[key]} and {line}; keep one"
                raise RecipeError(str(source), [Problem(f"line {line}", key, why)])
            lines[key] = line
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(str(source), [Problem(f"line {line}", "", f"is not YAML: {error.problem}")]) from error
    finally:
        loader.dispose()


def _unreadable(source: Path, error: Exception) -> Problem:
    if not isinstance(error, FileNotFoundError):
        return Problem("", "", f"cannot be read: {_first_line(error)}")
    folder = source.parent if source.parent.is_dir() and source.parent != Path() else Path("recipes")
    known = sorted(str(path) for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(source), known, n=1) or difflib.get_close_matches(
        source.stem, [Path(path).stem for path in known], n=1
    )
    hint = f" (did you mean {near[0]}?)" if near else ""
    return Problem("", "", f"no such recipe{hint}", f"recipes here: {', '.join(known)}" if known else None)


def _node_lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    """Dotted path and line of every key and list entry below a node."""
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(str(index), value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in entries:
        path = f"{prefix}{name}"
        yield path, mark.start_mark.line + 1
        yield from _node_lines(value, f"{path}.")


def _put(data: dict[str, Any], key: str, value: Any, text: str) -> None:
    """Set a dotted key in nested mappings and lists; mappings that are missing on the way are made."""
    *parents, last = key.split(".")
    here: Any = data
    for depth, name in enumerate([*parents, last]):
        path = ".".join(key.split(".")[:depth])
        if isinstance(here, list) and not (name.isdigit() and int(name) < len(here)):
            entries = ", ".join(f"{path}.{index}" for index in range(len(here)))
            raise ValueError(f"--set {text}: {path} is a list; name one of its entries: {entries}")
        if not isinstance(here, list | dict):
            raise ValueError(f"--set {text}: {path} is {here!r} and has no settings below it")
        place: Any = int(name) if isinstance(here, list) else name
        if depth == len(parents):
            here[place] = copy.deepcopy(value)
            return
        if isinstance(here, dict) and here.get(place) is None:
            here[place] = {}
        here = here[place]


def _paths(data: Any, prefix: str) -> Iterator[str]:
    """Dotted paths of the leaves; an empty mapping or list is a leaf."""
    entries: Mapping[Any, Any] = data if isinstance(data, dict) else {}
    if isinstance(data, list):
        entries = dict(enumerate(data))
    if not entries and prefix:
        yield prefix[:-1]
    for name, value in entries.items():
        yield from _paths(value, f"{prefix}{name}.")


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every setting of a configuration."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), f"{prefix}{name}.")
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{prefix}{index}.")
    else:
        yield prefix[:-1], value


def _touches(key: str, paths: frozenset[str]) -> bool:
    """Whether one of the paths is the key, above it or below it."""
    return any(key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.") for path in paths)


def _problems(
    error: ValidationError,
    kind: type[BaseModel],
    lines: Mapping[str, int],
    given: Mapping[str, str],
    data: Mapping[str, Any],
) -> list[Problem]:
    locations = [untagged([str(part) for part in details["loc"]], kind) for details in error.errors()]
    problems = []
    for details, key in zip(error.errors(), locations, strict=True):
        if details["type"] == "too_short" and any(other.startswith(f"{key}.") for other in locations):
            continue  # the list is short only because its entries are wrong
        problem = explain(details, kind)
        problems.append(replace(problem, where=_place(key, lines, given), key=key))
    problems.sort(key=lambda problem: lines.get(problem.key, 0))
    foreign = set(data) - set(kind.model_fields)
    if "train" in foreign and "sft" in data:
        return [Problem("", "", "a recipe of two stages, sft and train; run it with `unmask pipeline`")]
    kinds: dict[str, type[BaseModel]] = {"sft": SftRecipe, "train": TrainRecipe, "policy": PolicyRecipe}
    for command, other in kinds.items():
        if foreign and foreign <= set(other.model_fields):
            why = f"{', '.join(sorted(foreign))}: keys of another kind of recipe; run it with `unmask {command}`"
            return [Problem("", "", why), *problems]
    return problems


def _place(key: str, lines: Mapping[str, int], given: Mapping[str, str]) -> str:
    """Where the user wrote the key, or the closest key above it."""
    for path, text in given.items():
        if _touches(key, frozenset([path])):
            return f"--set {text}"
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"line {lines[key]}" if key else ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
