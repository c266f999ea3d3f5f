"""Errors that a person at a terminal can act on: what is wrong, the value seen, what is allowed, what to change."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe."""

    where: str
    """`line 12` or `--set a.b=c`; empty where neither is known."""
    key: str
    """Dotted path of the setting; empty if the whole file is meant."""
    what: str
    known: str | None = None
    """What is allowed, where that is a list."""

    def __str__(self) -> str:
        head = ", ".join(part for part in (self.where, self.key) if part)
        lines = [f"{head}: {self.what}" if head else self.what]
        return "\n".join([*lines, *([f"    {self.known}"] if self.known else [])])


class RecipeError(ValueError):
    """A recipe that cannot be run; the text lists every problem."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        if len(self.problems) == 1 and not self.problems[0].where and not self.problems[0].key:
            super().__init__(f"{source}: {self.problems[0]}")
        else:
            count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            super().__init__("\n".join([f"{source}: {count}", *(_indent(str(problem)) for problem in self.problems)]))


class RunError(RuntimeError):
    """A run that started and could not be finished; not the fault of what the user wrote."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'lr'?)`, or nothing where no known word is close."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def explain(details: Mapping[str, Any], root: type[BaseModel]) -> Problem:
    """One error of pydantic in our words; `root` is the configuration that was validated."""
    kind, context, seen = details["type"], details.get("ctx", {}), details["input"]
    location = [str(part) for part in details["loc"]]
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return Problem(
            "", "", f"kind is {context['tag']!r}{nearest(context['tag'], tags)}", f"allowed: {', '.join(tags)}"
        )
    if kind == "extra_forbidden":
        return _unknown_key(location, root)
    if kind == "missing":
        return Problem("", "", "is required and was not given")
    if kind == "literal_error":
        allowed = _choices(location, root)
        hint = nearest(str(seen), map(str, allowed))
        return Problem("", "", f"is {seen!r}{hint}", f"allowed: {', '.join(map(str, allowed))}")
    if kind in ("model_type", "model_attributes_type"):
        owner = _model_at(location, root)
        known = f"keys of {'.'.join(location)}: {', '.join(sorted(owner.model_fields))}" if owner else None
        return Problem("", "", f"is {_short(seen)}; it must be a mapping of keys to values", known)
    for name, words in _BOUNDS.items():
        if kind == name:
            return Problem("", "", f"is {seen!r}; it must be {words.format(**context)}")
    for stem, words in _TYPES.items():
        if kind.startswith(stem):
            return Problem("", "", f"is {_short(seen)}; it must be {words}")
    return Problem("", "", f"is {_short(seen)}: {details['msg'].removeprefix('Value error, ')}")


_BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "too_short": "a list of at least {min_length}",
}
_TYPES = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_": "a text",
    "dict_": "a mapping of keys to values",
    "tuple_": "a list",
}


def _unknown_key(location: list[str], root: type[BaseModel]) -> Problem:
    *above, name = location
    owner = _model_at(above, root)
    known = list(owner.model_fields) if owner else []
    hint = nearest(name, known)
    if not hint:
        elsewhere = [path for path in _keys(root, "") if path.rpartition(".")[2] == name]
        hint = f" (there is {' and '.join(elsewhere[:3])})" if elsewhere else ""
    of = f"keys of {untagged(above, root)}" if above else "keys of a recipe"
    return Problem("", "", f"unknown key{hint}", f"{of}: {', '.join(sorted(known))}")


def _choices(location: list[str], root: type[BaseModel]) -> tuple[Any, ...]:
    *above, name = location
    owner = _model_at(above, root)
    return get_args(owner.model_fields[name].annotation) if owner and name in owner.model_fields else ()


def untagged(location: Sequence[str], root: type[BaseModel]) -> str:
    """Dotted path of a setting without the kinds that pydantic names where one of several classes was chosen."""
    kept = [name for name, is_tag in zip(location, _walk(location, root)[1], strict=True) if not is_tag]
    return ".".join(kept)


def _model_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel] | None:
    """Configuration class that owns the keys below a location."""
    return _walk(location, root)[0]


def _walk(location: Sequence[str], root: type[BaseModel]) -> tuple[type[BaseModel] | None, list[bool]]:
    """The class at a location, and which parts of it name a kind, not a key."""
    choices: list[type[BaseModel]] = [root]
    is_tag = []
    for name in location:
        tagged = [choice for choice in choices if len(choices) > 1 and name in _tags(choice)]
        is_tag.append(bool(tagged))
        if tagged:
            choices = tagged
        elif choices and not name.isdigit():
            field = choices[0].model_fields.get(name)
            choices = list(_models_in(field.annotation)) if field else []
    return (choices[0] if choices else None), is_tag


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """Values of `kind` that choose a class."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configuration classes inside `X`, `X | None`, `X | Y`, `tuple[X, ...]` or an annotated one of these."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        for part in get_args(annotation):
            yield from _models_in(part)


def _keys(root: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted path of every key that a configuration can have."""
    for name, field in root.model_fields.items():
        yield f"{prefix}{name}"
        inner = next(_models_in(field.annotation), None)
        if inner is not None:
            index = "0." if get_origin(field.annotation) is tuple else ""
            yield from _keys(inner, f"{prefix}{name}.{index}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
