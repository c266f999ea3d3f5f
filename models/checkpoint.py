"""Published checkpoints: read them, and write them back so that other tools can read what was trained.

A folder holds config.json, the weights as one safetensors file or as shards with an index, and mostly
generation_config.json and tokenizer files. Names and shapes of the weights are the published ones on disk and the
stock ones in memory (`models.weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from models.build import meta_backbone
from models.denoiser import Denoiser
from models.family import Family, ModelError, family_of
from models.lora import has_lora, is_adapter, load_adapter, merged_deltas, save_adapter
from models.source import TINY, adapter_base, read_json, resolve, write_json
from models.tokenizer import load_tokenizer
from models.weights import Link, group_links, links, published_shapes, write_tensors

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def load(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
) -> Denoiser:
    """Denoiser from a folder in the published layout, an adapter's folder, a hub id, or `tiny`.

    `mask_token_id` is for checkpoints whose config.json does not name the mask token; `save` writes it there.
    """
    adapter = adapter_base(path)
    if adapter is not None:
        denoiser = load(adapter, dtype=dtype, device=device, mask_token_id=mask_token_id)
        load_adapter(denoiser, Path(path))
        return denoiser
    folder = resolve(path)
    config = read_json(folder / "config.json")
    family = family_of(config)
    backbone = meta_backbone(family, config)
    tied = bool(config.get(family.tied_field))
    _fill(backbone, _read_weights(folder, backbone, family, tied=tied, dtype=dtype, device=device), tied=tied)
    generation = folder / "generation_config.json"
    return Denoiser(
        backbone,
        family=family,
        config=config,
        generation_config=read_json(generation) if generation.exists() else None,
        tokenizer=load_tokenizer(folder),
        mask_token_id=mask_token_id,
        source=str(path) if str(path) == TINY or not Path(path).exists() else str(Path(path).resolve()),
    )


def save(
    denoiser: Denoiser,
    path: str | Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    weights: Mapping[str, torch.Tensor] | None = None,
    merged: bool = False,
) -> None:
    """Writes config.json, the weights under their published names, and the tokenizer files.

    A model with adapters saves the adapter alone, or with `merged` the whole model with the adapters added in.
    `weights` replaces the backbone's own values by name (those that ZeRO-3 has gathered). Each file appears under its
    name only when it is complete; other files in the folder stay.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if has_lora(denoiser) and not merged:
        save_adapter(denoiser, folder, weights)
        return
    stock = _stock_state(denoiser, weights)
    _write_weights(folder, denoiser.family, stock, max_shard_bytes)
    if denoiser.generation_config is not None:
        write_json(folder / "generation_config.json", denoiser.generation_config)
    if denoiser.tokenizer is not None:
        denoiser.tokenizer.save_pretrained(folder)
    field = "dtype" if "dtype" in denoiser.config else "torch_dtype"
    dtype = str(stock["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    write_json(folder / "config.json", denoiser.config | {field: dtype, "mask_token_id": denoiser.mask_token_id})


def load_named(denoiser: Denoiser, weights: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors into the backbone's parameters by name, in place; a leading `backbone.` may stay.

    All parameters must be given, or all of the adapters' (`lora_state`) and nothing else.
    """
    given = {name.removeprefix("backbone."): value for name, value in weights.items()}
    parameters = dict(denoiser.backbone.named_parameters())
    expected = {name for name in parameters if is_adapter(name)}
    if not expected or not given.keys() <= expected:
        expected = set(parameters)
    missing, surplus = sorted(expected - given.keys()), sorted(given.keys() - expected)
    if missing or surplus:
        raise ModelError(f"weights by name do not fit the model; missing: {_some(missing)}; surplus: {_some(surplus)}")
    for name, value in given.items():
        if value.shape != parameters[name].shape:
            raise ModelError(f"{name} has shape {tuple(value.shape)}; the model has {tuple(parameters[name].shape)}")
    with torch.no_grad():
        for name, value in given.items():
            parameters[name].copy_(value)


def _fill(backbone: PreTrainedModel, weights: dict[str, torch.Tensor], *, tied: bool) -> None:
    """Gives a backbone without memory its weights, and the rotary frequencies that no checkpoint holds."""
    backbone.load_state_dict(weights, strict=not tied, assign=True)
    backbone.tie_weights()
    rotary = backbone.model.rotary_emb
    backbone.model.rotary_emb = type(rotary)(config=backbone.config).to(backbone.lm_head.weight.device)


def _stock_state(denoiser: Denoiser, weights: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Tensors of the backbone under stock names, adapters added in, the tied head left out."""
    given = {name.removeprefix("backbone."): value for name, value in (weights or {}).items()}
    state = denoiser.backbone.state_dict() | given
    stock = {name.replace(".base_layer.", "."): value for name, value in state.items() if not is_adapter(name)}
    for name, delta in merged_deltas(denoiser, given).items():
        stock[name] = stock[name] + delta.to(stock[name].dtype)
    if denoiser.config.get(denoiser.family.tied_field):
        stock.pop("lm_head.weight")
    return stock


def _write_weights(folder: Path, family: Family, stock: Mapping[str, torch.Tensor], max_shard_bytes: int) -> None:
    stock_shapes = {name: tensor.shape for name, tensor in stock.items()}
    all_links = links(family, stock_shapes)
    shapes = published_shapes(all_links, stock_shapes)
    by_published = group_links(all_links, "published")
    sizes = {
        name: torch.Size(shape).numel() * stock[by_published[name][0].stock].element_size()
        for name, shape in shapes.items()
    }
    shards = _shards(sizes, max_shard_bytes)
    numbered = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = [SINGLE] if len(shards) == 1 else numbered
    for file, names in zip(files, shards, strict=True):
        write_tensors(folder / file, {name: _assemble(by_published[name], shapes[name], stock) for name in names})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
        files.append(INDEX)
    for stale in {*folder.glob("model*.safetensors"), *folder.glob(INDEX)}:
        if stale.name not in files:
            stale.unlink()


def _read_weights(
    folder: Path,
    backbone: PreTrainedModel,
    family: Family,
    *,
    tied: bool,
    dtype: torch.dtype,
    device: str | torch.device,
) -> dict[str, torch.Tensor]:
    """Stock tensors of a published folder, one at a time in memory beside the result."""
    stock = backbone.state_dict()
    if tied:
        stock.pop("lm_head.weight")
    buffers = {name for name, _ in backbone.named_buffers()}
    by_stock = group_links(links(family, {name: tensor.shape for name, tensor in stock.items()}), "stock")
    weights: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        reader = _Reader(folder, stack)
        _check(reader, by_stock, stock, tied=tied)
        for name, meta in stock.items():
            # Buffers (the router's correction bias) stay in the precision that the stock class gives them.
            weights[name] = torch.empty(meta.shape, dtype=meta.dtype if name in buffers else dtype, device=device)
            for link in by_stock[name]:
                link.stock_part(weights[name]).copy_(link.published_part(reader.tensor(link.published)))
    return weights


class _Reader:
    """The safetensors files of a folder as one mapping from weight name to tensor; reads one tensor at a time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in _weight_files(folder):
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file}: corrupt or truncated safetensors file ({error}); fetch it again") from error
            self._open[file] = handle
            self.file_of |= {name: file for name in handle.keys()}  # noqa: SIM118 - not a mapping

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self.file_of[name]].get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._open[self.file_of[name]].get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{folder / INDEX}: weight_map is missing")
        files = [folder / file for file in sorted(set(weight_map.values()))]
    else:
        files = [folder / SINGLE]
    for file in files:
        if not file.exists():
            raise ModelError(f"{file}: missing; the folder has no complete set of safetensors weights")
    return files


def _check(
    reader: _Reader, by_stock: Mapping[str, list[Link]], stock: Mapping[str, torch.Tensor], *, tied: bool
) -> None:
    all_links = [link for group in by_stock.values() for link in group]
    shapes = published_shapes(all_links, {name: tensor.shape for name, tensor in stock.items()})
    missing = [name for name in shapes if name not in reader.file_of]
    surplus = [name for name in reader.file_of if name not in shapes and not name.endswith("rotary_emb.inv_freq")]
    if tied and "lm_head.weight" in surplus:
        embedding = next(link.published for link in all_links if link.stock == "model.embed_tokens.weight")
        if torch.equal(reader.tensor("lm_head.weight"), reader.tensor(embedding)):
            surplus.remove("lm_head.weight")
    if missing or surplus:
        raise ModelError(
            f"{next(iter(reader.file_of.values())).parent}: weights do not match config.json;"
            f" missing: {_some(missing)}; surplus: {_some(surplus)}"
        )
    for name, shape in shapes.items():
        if reader.shape(name) != shape:
            raise ModelError(f"{reader.file_of[name]}: {name} has shape {reader.shape(name)}; config.json says {shape}")


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _assemble(published_links: list[Link], shape: tuple[int, ...], stock: Mapping[str, torch.Tensor]) -> torch.Tensor:
    published = torch.empty(shape, dtype=stock[published_links[0].stock].dtype)
    for link in published_links:
        link.published_part(published).copy_(link.stock_part(stock[link.stock]))
    return published


def _shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, each shard filled up to the limit (a larger tensor has a shard of its own)."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
