"""`unmask bench probe`: what attention sums of the active blocks add to a forward.

The plain forward of full canvases (8 of 256 tokens, hidden states wanted at the masked half of a block of 32) against
the same with column sums (Attn-Sampler) or row sums (Max-S) of the last layer or of all layers: tiny float32 (width
256, 6 layers, 8 heads) and 100M bfloat16 (width 768, 12 layers, 12 heads), random weights. `--shape llada-8b` takes
LLaDA-8B's sizes, for a GPU.

Processor time on a processor, wall-clock time after synchronisation on a GPU; variants take turns, ratios are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

import models
from benchmarks.models import hundred_million, llada_config, on_device, tiny
from benchmarks.timing import in_turn, machine
from models.block_probe import BlockProbe
from models.packing import Span
from models.probe import layer_set

ROWS, CANVAS, BLOCK = 8, 256, 32
PLAIN = "plain forward"
VARIANTS = {
    f"{kind} sums, {layers} layer{'s' if layers == 'all' else ''}": (kind, layers)
    for layers in ("last", "all")
    for kind in ("column", "row")
}


class Case:
    """Canvases of one model with their last block half masked."""

    def __init__(self, denoiser: models.Denoiser) -> None:
        self.denoiser = denoiser
        generator = torch.Generator().manual_seed(0)
        tokens_BN = torch.randint(denoiser.vocab_size - 2, (ROWS, CANVAS), generator=generator)
        self.masked_BL = torch.rand(ROWS, BLOCK, generator=generator) < 0.5
        tokens_BN[:, -BLOCK:][self.masked_BL] = denoiser.mask_token_id
        self.known_BN = (tokens_BN != denoiser.mask_token_id).to(denoiser.device)
        self.masked_BL = self.masked_BL.to(denoiser.device)
        self.token_M = tokens_BN.flatten().to(denoiser.device)
        self.place_BL = torch.arange(ROWS * CANVAS, device=denoiser.device).view(ROWS, CANVAS)[:, -BLOCK:]
        self.wanted_W = self.place_BL[self.masked_BL]
        self.counts = self.masked_BL.sum(dim=1).tolist()

    @torch.inference_mode()
    def run(self, kind: str | None = None, layers: str = "last") -> torch.Tensor | None:
        """One forward; the sums if a kind is given."""
        packing = self.denoiser.packing([Span(row, 0, CANVAS, CANVAS) for row in range(ROWS)])
        probe = None
        if kind is not None:
            chosen = layer_set(layers, self.denoiser.num_layers)  # type: ignore[arg-type]
            probe = BlockProbe(
                kind,  # type: ignore[arg-type]
                chosen,
                place_SL=self.place_BL,
                masked_SL=self.masked_BL,
                known_SN=self.known_BN,
            )
        self.denoiser.start(self.token_M, packing, observer=probe).hidden(self.wanted_W, self.counts)
        sums = None if probe is None else probe.sums()
        if self.token_M.device.type == "cuda":
            torch.cuda.synchronize()
        return sums


def overheads(denoiser: models.Denoiser, *, repetitions: int) -> dict[str, float]:
    """Time of each variant over that of the plain forward."""
    case = Case(denoiser)
    runs: dict[str, Callable[[], object]] = {PLAIN: case.run}
    runs |= {name: partial(case.run, kind, layers) for name, (kind, layers) in VARIANTS.items()}
    for run in runs.values():
        run()
    clock = time.perf_counter if denoiser.device.type == "cuda" else time.process_time
    timings = in_turn(runs, repetitions=repetitions, clock=clock)
    return {name: 1 / timings.ratio(name, PLAIN) for name in VARIANTS}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table a model."""
    parser = argparse.ArgumentParser(
        prog="unmask bench probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", nargs="*", choices=["tiny", "100m", "llada-8b"], default=["tiny", "100m"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    for shape in options.shape:
        print(f"\n{shape}, {ROWS} canvases of {CANVAS}, block {BLOCK}\n| sums | time added |\n|---|---|")
        for name, ratio in overheads(_model(shape, options.device), repetitions=options.repetitions).items():
            print(f"| {name} | {100 * (ratio - 1):+.1f} % |", flush=True)
    return 0


def _model(shape: str, device: str) -> models.Denoiser:
    if shape == "llada-8b":
        config = llada_config(width=4096, layers=32, heads=32, ffn=12288, vocabulary=126464)
        return on_device(config, device=device, dtype=torch.bfloat16)
    return (tiny() if shape == "tiny" else hundred_million()).to(device)


if __name__ == "__main__":
    raise SystemExit(main())
