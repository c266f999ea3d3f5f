"""What a run leaves behind: files in its folder first, and a copy of them in MLflow.

    tracker = Tracker.start(recipe, run_dir)
    tracker.log(step, {"reward/mean": 0.4, ...})
    tracker.finish("finished")

`metrics.jsonl` in the run folder is the truth: one line for each call of `log`, written and flushed before anything
else happens. MLflow gets the same from one background thread, so that a slow or dead store never stops training; what
it did not take is counted under `failure/tracking` and offered once more in `finish`; what a killed attempt did not
send is sent by the next one. Values that are not finite are not logged but counted under `failure/nonfinite`. A
resumed run may write a step twice: readers take the later one. A file that cannot be written ends the run.

    run_dir/  metrics.jsonl  samples.jsonl  evaluation.jsonl  mlflow.json  summary.md  summary.png
              recipe/attempt_1.yaml  order/step_000010_0.json  decode_order/<prompt>.png
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cluster.errors import RunError
from cluster.line_file import LineFile, read_lines
from cluster.metrics import accuracies, clean_name, clean_part
from cluster.mlflow_store import MlflowStore, RunStatus, default_uri
from cluster.run_note import Recipe, RunNote
from cluster.uploads import Uploads
from cluster.versions import code_version, library_versions, package_version
from rollout.records import Trajectory

logger = logging.getLogger(__name__)

Status = Literal["finished", "failed", "killed"]

_STATUS: dict[Status, RunStatus] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_MAX_TABLE_ROWS = 2000
_MAX_STRIPS = 6
_PAGE_DPI = 80
"""Pictures of the run's page are 720 pixels wide: it cuts off what is wider than the column of the description."""


class Tracker:
    """The record of one run; made by `start`, ended by `finish`."""

    def __init__(self, recipe: Recipe, run_dir: Path, store: MlflowStore, *, max_pending: int, pause_s: float) -> None:
        self.run_dir = run_dir
        self._recipe = recipe
        self._store = store
        self._code_version = code_version()
        self._attempt = len(list((run_dir / "recipe").glob("attempt_*.yaml"))) + 1
        self._metrics_file = LineFile(run_dir / "metrics.jsonl")
        self._left_out: list[int] = []
        self._reported_failures = 0
        self._orders_of_step: dict[int, int] = {}
        self._uploads = Uploads(self._open, errors=store.errors, max_pending=max_pending, pause_s=pause_s)

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        run_dir: Path,
        resume_run_id: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_pending: int = 4096,
        pause_s: float = 30.0,
    ) -> Tracker:
        """Begin the record in `run_dir`, or go on with the MLflow run `resume_run_id`.

        Waits for the store until `timeout_s` and starts without it after that. Up to `max_pending` uploads may wait;
        after a failure the store is left alone for `pause_s`.
        """
        run_dir = Path(run_dir).resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        store = MlflowStore(
            recipe.tracking.uri or default_uri(recipe.runs_dir),
            experiment=recipe.tracking.experiment,
            run_name=run_dir.name,
            artifact_root=Path(recipe.runs_dir) / "mlartifacts",
            run_id=resume_run_id,
        )
        tracker = cls(recipe, run_dir, store, max_pending=max_pending, pause_s=pause_s)
        tracker._uploads.start(timeout_s)
        tracker.artifact(tracker._save_recipe(), "recipe")
        tracker._uploads.put("the description", tracker._describe)
        tracker._replay()
        return tracker

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None as long as the store has not answered."""
        return self._store.run_id

    @property
    def uri(self) -> str:
        """The MLflow store."""
        return self._store.uri

    @property
    def page(self) -> str:
        """Address of the run below the host and port of `unmask ui`: `/#/experiments/1/runs/...`."""
        return self._store.page

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of a step to `metrics.jsonl` and send them to the store as one batch."""
        now_s = time.time()
        values, nonfinite = _finite(metrics)
        if nonfinite:
            values["failure/nonfinite"] = float(len(nonfinite))
        if (failures := self._uploads.num_failures) > self._reported_failures:
            values["failure/tracking"] = float(failures - self._reported_failures)
            self._reported_failures = failures
        marks = {"nonfinite": nonfinite} if nonfinite else {}
        try:
            line = self._metrics_file.append({"step": step, "time": now_s, **marks, **values})
        except OSError as error:
            raise RunError(
                f"{self._metrics_file.path} cannot be written ({error}). It is the record of the run, so the run ends "
                "here; make room and go on with --resume"
            ) from error
        if not self._uploads.put(f"step {step}", self._metrics_job(step, now_s, values)):
            self._left_out.append(line)
        if accuracies([{"step": step, **values}]):
            self._uploads.put("the summary", self._summarise, only_latest=True)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add answers (task, reward, forwards, prompt, answer, ...) to the sample table."""
        self._add_rows("samples", step, rows)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the answers of an evaluation (task, correct, forwards, prompt, answer, ...) to the evaluation table."""
        self._add_rows("evaluation", step, rows)

    def order_picture(
        self, step: int, prompt_text: str, trajectory: Trajectory, pieces: list[str], *, reward: float | None = None
    ) -> None:
        """Save the order in which an answer was denoised; `pieces` holds one string per answer token.

        The answers to one prompt at several steps are drawn under each other, in one picture that grows.
        """
        number = self._orders_of_step.get(step, 0)
        self._orders_of_step[step] = number + 1
        length = min(len(pieces), len(trajectory.step_map))
        record = {
            "step": step,
            "prompt_id": trajectory.prompt_id,
            "prompt": prompt_text,
            "pieces": pieces[:length],
            "step_map": trajectory.step_map[:length].tolist(),
            "num_steps": trajectory.num_steps,
            "num_forwards": trajectory.num_forwards,
            "sampler": trajectory.sampler,
            "reward": reward,
        }
        path = self.run_dir / "order" / f"step_{step:06d}_{number}.json"
        path.parent.mkdir(exist_ok=True)
        written = path.with_suffix(".tmp")
        written.write_text(json.dumps(record) + "\n", encoding="utf-8")
        written.replace(path)  # the thread may read the folder at any moment
        name = clean_part(trajectory.prompt_id or f"prompt {number}").replace(":", "_").replace(" ", "_")
        self._uploads.put(f"the orders of {name}", lambda: self._draw_orders(prompt_text, name), only_latest=True)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Texts that describe the run, known only after its start."""
        if tags:
            self._uploads.put("tags", lambda: self._store.set_tags(tags))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder of the run to the store."""
        self._uploads.put(f"artifact {path.name}", lambda: self._store.log_artifact(path, folder))

    def finish(self, status: Status, *, checkpoint: Path | None = None, timeout_s: float = 120.0) -> None:
        """End the record: picture, description and what the store has missed, tried once within `timeout_s`."""
        self._send_left_out()
        (self.run_dir / "summary.md").write_text(self._note(checkpoint).markdown() + "\n", encoding="utf-8")
        self._uploads.put("the summary", lambda: self._summarise(checkpoint), force=True, only_latest=True)
        self._uploads.put("the status", lambda: self._store.end(_STATUS[status]), force=True)
        if num_missing := self._uploads.close(timeout_s):
            logger.warning(
                "%d uploads did not reach %s within %.0f s; %s has every number.",
                num_missing,
                self.uri,
                timeout_s,
                self._metrics_file.path,
            )
        self._metrics_file.close()

    def _open(self) -> None:
        """In the thread: create or take up the MLflow run, and note its id in the run folder."""
        params = dict(flatten(self._recipe.model_dump(mode="json")))
        self._store.open(params, run_tags(self._code_version, self._attempt))
        entry = {"run_id": self._store.run_id, "uri": self._store.uri}
        (self.run_dir / "mlflow.json").write_text(json.dumps(entry) + "\n", encoding="utf-8")

    def _replay(self) -> None:
        """Offers all numbers of earlier attempts to the store, which keeps one of each: it may lack the last ones."""
        for row in list(read_lines(self._metrics_file.path)):
            if row is not None and (values := _numbers(row)):
                self._uploads.put(f"step {row['step']}", self._metrics_job(int(row["step"]), row["time"], values))

    def _save_recipe(self) -> Path:
        path = self.run_dir / "recipe" / f"attempt_{self._attempt}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(self._recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        return path

    def _metrics_job(self, step: int, time_s: float, values: dict[str, float]) -> Callable[[], None]:
        return lambda: self._store.log_metrics(step, int(time_s * 1000), values)

    def _add_rows(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        file = LineFile(self.run_dir / f"{name}.jsonl")
        for row in rows:
            file.append({"step": step, **{key: _cell(value) for key, value in row.items()}})
        file.close()
        self._uploads.put(f"the {name} table", lambda: self._send_table(name), only_latest=True)

    def _send_table(self, name: str) -> None:
        """In the thread: the newest rows of a table, newest step first."""
        rows = [row for row in read_lines(self.run_dir / f"{name}.jsonl") if row is not None][-_MAX_TABLE_ROWS:]
        self._store.log_table(name, sorted(rows, key=lambda row: -int(row["step"])))

    def _draw_orders(self, prompt_text: str, name: str) -> None:
        """In the thread: the answers to one prompt so far, in order of steps, in one picture."""
        from cluster import pictures

        strips = [strip for strip in pictures.load_strips(self.run_dir) if strip.prompt == prompt_text]
        shown = strips if len(strips) <= _MAX_STRIPS else [strips[0], *strips[1 - _MAX_STRIPS :]]
        path = self.run_dir / "decode_order" / f"{name}.png"
        pictures.save(pictures.order_strips(shown), path)
        self._store.log_artifact(path, "decode_order")

    def _summarise(self, checkpoint: Path | None = None) -> None:
        """In the thread: the picture and the description of the run so far."""
        from cluster import readme_picture

        picture = self.run_dir / "summary.png"
        if readme_picture.draw([self.run_dir], picture, dpi=_PAGE_DPI):
            self._store.log_artifact(picture, None)
        self._describe(checkpoint)

    def _describe(self, checkpoint: Path | None = None) -> None:
        self._store.describe(self._note(checkpoint).markdown())

    def _note(self, checkpoint: Path | None) -> RunNote:
        has_picture = (self.run_dir / "summary.png").exists()
        return RunNote(
            recipe=self._recipe,
            accuracies=accuracies(read_metrics(self.run_dir)),
            run_dir=self.run_dir,
            code_version=self._code_version,
            picture=f"get-artifact?path=summary.png&run_uuid={self.run_id}" if has_picture and self.run_id else "",
            checkpoint=checkpoint,
            upload_failures=self._uploads.num_failures > 0,
        )

    def _send_left_out(self) -> None:
        """Queue the steps that found the queue full, read back from the file."""
        wanted = set(self._left_out)
        for number, row in enumerate(read_lines(self._metrics_file.path) if wanted else ()):
            if number in wanted and row is not None:
                job = self._metrics_job(int(row["step"]), row["time"], _numbers(row))
                self._uploads.put(f"step {row['step']}", job, force=True)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl` by step: `step`, `time` and the metrics; of a step written twice the later value."""
    by_step: dict[int, dict[str, float]] = {}
    for row in read_lines(Path(run_dir) / "metrics.jsonl"):
        if row is not None:
            by_step.setdefault(int(row["step"]), {}).update(step=row["step"], time=row["time"], **_numbers(row))
    return [by_step[step] for step in sorted(by_step)]


def saved_run_id(run_dir: Path) -> str | None:
    """The MLflow run that a run folder belongs to; None if it never reached a store."""
    path = Path(run_dir) / "mlflow.json"
    if not path.exists():
        return None
    run_id: str = json.loads(path.read_text(encoding="utf-8"))["run_id"]
    return run_id


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested settings as (dotted key, text): `{"a": {"b": [1]}}` gives `a.b.0`, `1`."""
    children: Any = ()
    if isinstance(settings, Mapping):
        children = settings.items()
    elif isinstance(settings, (list, tuple)):
        children = enumerate(settings)
    else:
        yield prefix, "none" if settings is None else str(settings)
    for key, value in children:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def run_tags(version: str, attempt: int) -> dict[str, str]:
    """Versions of the code and of the libraries, and the attempt of a resumed run."""
    tags = {"version.code": version, "version.unmask": package_version(), "attempt": str(attempt)}
    tags |= {f"version.{name}": number for name, number in library_versions().items()}
    if " " not in version:
        tags["mlflow.source.git.commit"] = version.removesuffix("+changes")
    return {**tags, "mlflow.source.name": "unmask", "mlflow.source.type": "LOCAL"}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row: their names have a section, the other entries do not."""
    return {key: value for key, value in row.items() if "/" in key}


def _finite(metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """Cleaned names with their finite values, and the names of the others."""
    values = {clean_name(name): float(value) for name, value in metrics.items()}
    nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
    return {name: value for name, value in values.items() if name not in nonfinite}, nonfinite


def _cell(value: Any) -> str | int | float | bool | None:
    """A table cell that JSON can hold: text, number, truth value; anything else as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
