"""One picture of finished runs, drawn from their folders: the README's, and the summary of a run's page.

python -m cluster.readme_picture runs/quickstart-0 runs/quickstart-1 --out docs/images/quickstart.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster import pictures
from cluster.metrics import accuracies
from cluster.pictures import RunCurve, Strip
from cluster.tracking import read_metrics


def draw(run_dirs: Sequence[Path], out: Path, *, title: str = "", dpi: int = 150) -> bool:
    """Write the reward curve over all runs and the orders of the first run that has some; False if there is nothing."""
    curves = [curve for run_dir in run_dirs if (curve := run_curve(run_dir)) is not None]
    strips = next((found for run_dir in run_dirs if (found := before_and_after(run_dir))), [])
    if not curves and not strips:
        return False
    pictures.save(pictures.run_summary(curves, strips, title=title), out, dpi=dpi)
    return True


def run_curve(run_dir: Path) -> RunCurve | None:
    """Training reward and evaluations of a run folder; None if it has neither."""
    rows = read_metrics(run_dir)
    reward = [(int(row["step"]), row["reward/mean"]) for row in rows if "reward/mean" in row]
    points = accuracies(rows)
    return RunCurve(Path(run_dir).name, reward, points) if reward or points else None


def before_and_after(run_dir: Path) -> list[Strip]:
    """First and last saved order of one prompt: of those drawn at both, the one whose reward rose most."""
    strips = pictures.load_strips(run_dir)
    if not strips:
        return []
    first_step, last_step = strips[0].step, strips[-1].step
    firsts = {strip.prompt: strip for strip in strips if strip.step == first_step}
    lasts = {strip.prompt: strip for strip in strips if strip.step == last_step}
    shared = [(firsts[prompt], lasts[prompt]) for prompt in firsts if prompt in lasts and first_step != last_step]
    if not shared:
        return [strips[-1]]
    before, after = max(shared, key=lambda pair: (pair[1].reward or 0) - (pair[0].reward or 0))
    return [replace(before, label=f"before, {before.title}"), replace(after, label=f"after, {after.title}")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dirs", nargs="+", type=Path, help="run folders, one per seed")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--title", default="")
    options = parser.parse_args(arguments)
    if not draw(options.run_dirs, options.out, title=options.title):
        parser.error(f"none of {[str(path) for path in options.run_dirs]} has metrics.jsonl rows or saved orders")


if __name__ == "__main__":
    main()
