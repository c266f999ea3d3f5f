"""How published weight tensors and stock parameters correspond, both ways.

Every correspondence is a link: some rows of one published tensor are some rows of one stock tensor (of one expert,
where transformers keeps the experts of a layer in one tensor). Reading and writing walk the same links.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from models.family import Family

Rows = tuple[int, int]


@dataclass(frozen=True)
class Link:
    """Rows of a published tensor that are rows of a stock tensor; None = all of them."""

    published: str
    stock: str
    published_rows: Rows | None = None
    stock_rows: Rows | None = None
    expert: int | None = None

    def stock_part(self, stock: torch.Tensor) -> torch.Tensor:
        """View of the stock tensor that this link covers."""
        part = stock if self.expert is None else stock[self.expert]
        return part if self.stock_rows is None else part[self.stock_rows[0] : self.stock_rows[1]]

    def published_part(self, published: torch.Tensor) -> torch.Tensor:
        """View of the published tensor that this link covers."""
        return published if self.published_rows is None else published[self.published_rows[0] : self.published_rows[1]]


def links(family: Family, stock_shapes: Mapping[str, torch.Size]) -> list[Link]:
    """Links of every stock tensor, in stock order."""
    found: list[Link] = []
    for name, shape in stock_shapes.items():
        if name.endswith("experts.gate_up_proj"):
            found += _gate_up_links(family, name, shape)
        elif name.endswith("experts.down_proj"):
            prefix = family.published_name(name.removesuffix("down_proj"))
            found += [Link(f"{prefix}{e}.down_proj.weight", name, expert=e) for e in range(shape[0])]
        elif family.fused_qkv and re.search(r"self_attn\.[qkv]_proj\.", name):
            found.append(_qkv_link(family.fused_qkv, name, stock_shapes))
        else:
            found.append(Link(family.published_name(name), name))
    return found


def group_links(all_links: Iterable[Link], by: Literal["published", "stock"]) -> dict[str, list[Link]]:
    """Links of each published, or of each stock, tensor."""
    grouped: dict[str, list[Link]] = {}
    for link in all_links:
        grouped.setdefault(link.published if by == "published" else link.stock, []).append(link)
    return grouped


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Safetensors file that appears under its name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors leaves it readable by its owner only
    os.replace(partial, path)


def published_shapes(all_links: Iterable[Link], stock_shapes: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    """Shape of every published tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for link in all_links:
        shape = tuple(stock_shapes[link.stock])
        shape = shape if link.expert is None else shape[1:]
        if link.stock_rows is not None:
            shape = (link.stock_rows[1] - link.stock_rows[0], *shape[1:])
        if link.published_rows is not None:
            shape = (max(link.published_rows[1], shapes.get(link.published, (0,))[0]), *shape[1:])
        shapes[link.published] = shape
    return shapes


def _gate_up_links(family: Family, name: str, shape: torch.Size) -> list[Link]:
    prefix = family.published_name(name.removesuffix("gate_up_proj"))
    half = shape[1] // 2
    return [
        Link(f"{prefix}{e}.{half_name}.weight", name, stock_rows=rows, expert=e)
        for e in range(shape[0])
        for half_name, rows in (("gate_proj", (0, half)), ("up_proj", (half, 2 * half)))
    ]


def _qkv_link(fused: str, name: str, stock_shapes: Mapping[str, torch.Size]) -> Link:
    head, _, tail = name.partition("self_attn.")
    which, leaf = tail[0], tail.rpartition(".")[2]
    before = "qkv"[: "qkv".index(which)]
    start = sum(stock_shapes[f"{head}self_attn.{other}_proj.{leaf}"][0] for other in before)
    return Link(f"{head}{fused}.{leaf}", name, published_rows=(start, start + stock_shapes[name][0]))
