"""The MLflow run of a training run: the only file that talks to MLflow.

MLflow is imported when a store is made, not when this module is: the import takes seconds. The fluent interface
(`mlflow.log_metric` and autologging) is not used, so nothing is recorded but what is sent here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.metrics import clean_part

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

logger = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A dead server would otherwise cost seven retries of up to 120 s for each call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
"""What MLflow reads from the environment, both in a run and in `unmask ui`; values set by the user win."""

_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_TABLES_TAG = "mlflow.loggedArtifacts"
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Post-training runs of `unmask`; docs/metrics.md says how to read them.",
}
_NOISY_LOGGERS = {"alembic": logging.WARNING, "mlflow": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}


def set_mlflow_environment() -> None:
    """Switch off telemetry and long waits; must run before MLflow is imported."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def default_uri(runs_dir: str | Path) -> str:
    """The SQLite store beside the runs."""
    return f"sqlite:///{Path(runs_dir).resolve() / 'mlflow.db'}"


def make_sqlite_store(uri: str) -> None:
    """Make a SQLite store with its tables where there is none; it appears complete, in one step.

    MLflow creates the tables in place, which takes seconds: two runs that start together, or one that is killed
    meanwhile, would leave a store that no later run can open.
    """
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if not uri.startswith("sqlite:///") or path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        made, closed = Path(folder) / "made.db", Path(folder) / "closed.db"
        MlflowClient(f"sqlite:///{made}")
        shutil.copyfile(made, closed)  # MLflow keeps `made` open
        try:
            os.link(closed, path)
        except FileExistsError:
            logger.debug("another run has made %s meanwhile", path)


def ui_command(uri: str, *, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Command line of the MLflow page on a store; run it with `MLFLOW_ENVIRONMENT` set."""
    address = ["--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *address]


class MlflowStore:
    """One MLflow run, created or taken up again by `open`; every method may raise one of `errors`."""

    errors: tuple[type[Exception], ...]
    """What a store that is broken, locked, full or out of reach raises."""

    def __init__(self, uri: str, *, experiment: str, run_name: str, artifact_root: Path, run_id: str | None) -> None:
        set_mlflow_environment()
        from alembic.util.exc import CommandError
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        for name, level in _NOISY_LOGGERS.items():
            logging.getLogger(name).setLevel(level)
        self.errors = (MlflowException, SQLAlchemyError, CommandError, OSError, ValueError)
        self.uri = uri
        self.run_id = run_id
        self.experiment_id: str | None = None
        self._not_found: type[Exception] = MlflowException
        self._make_client = lambda: MlflowClient(tracking_uri=uri)
        self._experiment = experiment
        self._run_name = run_name
        self._artifact_root = artifact_root

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; making it connects to a database store and creates its tables."""
        if not hasattr(self, "_client"):
            make_sqlite_store(self.uri)
            self._client = self._make_client()
        return self._client

    def open(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Take the run up again, or create it; parameters are written once in the life of a run."""
        from mlflow.entities import Param, RunTag

        if not self._take_up():
            run = self.client.create_run(self._find_experiment(), run_name=self._run_name)
            self.run_id = run.info.run_id
        assert self.run_id is not None
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        run = self.client.get_run(self.run_id)
        self.experiment_id = run.info.experiment_id
        if not run.data.params:
            entries = [Param(clean_part(key), value[:_PARAM_LENGTH]) for key, value in params.items()]
            for start in range(0, len(entries), _PARAMS_PER_BATCH):
                self.client.log_batch(self.run_id, params=entries[start : start + _PARAMS_PER_BATCH])

    def log_metrics(self, step: int, time_ms: int, values: Mapping[str, float]) -> None:
        """One batch for all the metrics of a step."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, time_ms, step) for name, value in values.items()]
        self.client.log_batch(self._run, metrics=metrics)

    def log_artifact(self, path: Path, folder: str | None) -> None:
        """Copy a file, or the contents of a folder, into the run's artifacts."""
        if path.is_dir():
            self.client.log_artifacts(self._run, str(path), folder)
        else:
            self.client.log_artifact(self._run, str(path), folder)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table artifact `name`.json, which the page shows as a table; an older one is replaced.

        MLflow's own `log_table` is not used: to add rows it reads the old ones back through pandas, which turns the
        answer "007" into the number 7.
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        file = f"{name}.json"
        self.client.log_text(self._run, json.dumps({"columns": columns, "data": data}), file)
        tables = json.loads(self.client.get_run(self._run).data.tags.get(_TABLES_TAG, "[]"))
        if (entry := {"path": file, "type": "table"}) not in tables:
            self.client.set_tag(self._run, _TABLES_TAG, json.dumps([*tables, entry]))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        for name, value in tags.items():
            self.client.set_tag(self._run, name, value)

    def describe(self, markdown: str) -> None:
        """The description at the top of the run's page."""
        self.client.set_tag(self._run, "mlflow.note.content", markdown)

    def end(self, status: RunStatus) -> None:
        """Mark the run as over."""
        self.client.set_terminated(self._run, status)

    @property
    def page(self) -> str:
        """Address of the run below the host and port of `unmask ui`; empty before `open`."""
        if self.experiment_id is None:
            return ""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    @property
    def _run(self) -> str:
        assert self.run_id is not None
        return self.run_id

    def _take_up(self) -> bool:
        """Whether the run with our id is there and was set to running again."""
        if self.run_id is None:
            return False
        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except self._not_found as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow run %s is not in %s: the resumed run gets a new one.", self.run_id, self.uri)
            return False
        return True

    def _find_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self._experiment)
        if found is None:
            return self._create_experiment()
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _create_experiment(self) -> str:
        """A new experiment; another run that created it a moment before us is fine."""
        is_database = "://" in self.uri and not self.uri.startswith(("http:", "https:", "databricks"))
        location = self._artifact_root.resolve().as_uri() if is_database else None
        try:
            return str(self.client.create_experiment(self._experiment, location, _EXPERIMENT_TAGS))
        except self._not_found:
            found: Experiment | None = self.client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return str(found.experiment_id)
