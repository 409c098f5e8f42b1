"""result.json files -> what the table needs of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.record import result_file

ACCURACY, LOSS = "accuracy", "loss"


@dataclass(frozen=True)
class Result:
    """What the table needs of one result.json. Accuracies are shares of 1, seconds are seconds.

    metric: the name of the run's own: accuracy, where it has one; else the first one of its
    metrics; else loss; "" without a test set. metrics: all of them over the test set, by name, the
    loss too. evaluations: the metric's, in the order of the steps.
    """

    path: str
    config: dict[str, Any]  # without the seed
    seed: int
    status: str
    correct: int  # of `total` test images; both 0 if the run has no count
    total: int
    metric: str
    metrics: dict[str, float | None]
    readme_accuracy: float | None
    collapsed: int | None
    seconds: float | None
    evaluations: tuple[float, ...]
    model_files: str | None  # the digest of the model's file and of what it imports
    network: str  # see `network_of`
    data: str  # the digest, "" if it is not on record

    @property
    def value(self) -> float | None:
        """The metric's. An accuracy is correct / total, rather than the file's own rounding."""
        return self.correct / self.total if self.total else self.metrics.get(self.metric)


def parse_result(text: str, path: str) -> Result:
    """The Result in the text of a result.json. Raises as result_file.parse_result."""
    found = result_file.parse_result(text, path)
    same = ("config", "status", "readme_accuracy", "collapsed", "seconds", "model_files")
    counted = found["test_correct"] is not None
    metrics = dict(found["test_metrics"] or {})
    if counted or found["test_accuracy"] is not None:
        metrics = {ACCURACY: found["test_accuracy"]} | metrics
    if found["test_loss"] is not None:
        metrics[LOSS] = found["test_loss"]
    metric = ACCURACY if ACCURACY in metrics else next(iter(metrics), "")
    evaluations = (found["evaluations"] or {}).get(f"test_{metric}", ())
    return Result(
        path=path,
        seed=found["config"].pop("seed"),
        correct=found["test_correct"] or 0,
        total=found["test_total"] if counted else 0,
        metric=metric,
        metrics=metrics,
        evaluations=tuple(value for value in evaluations if value is not None),
        network=network_of(found),
        data=found["data"] or "",
        **{name: found[name] for name in same},
    )


def network_of(found: Mapping[str, Any]) -> str:
    """Of a checked result, 64 hex digits that distinguish networks of the same config: the files
    and the objects that model, loss and metrics were; "" where the config says it all."""
    told = [name for name in ("model_files", "loss_files", "rule") if found[name] is not None]
    if {*(found["given"] or ())} & {"model", "loss", "metrics"}:
        told.append("network")
    parts = {name: found[name] for name in told}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() if parts else ""


def read_results(logdir: str | Path) -> tuple[list[Result], list[str]]:
    """Every result.json below logdir, as `read_files`. LabError if logdir is not a directory."""
    if not Path(logdir).is_dir():
        raise LabError(f"{logdir}: no such directory; name the one that holds the runs")
    return read_files(sorted(Path(logdir).rglob("result.json")))


def read_files(paths: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """These result.json files, in order, and for `make_table` a line for each that is unusable."""
    results, problems = [], []
    for path in paths:
        try:
            results.append(parse_result(path.read_text(encoding="utf-8"), str(path)))
        except LabError as error:
            problems.append(str(error))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read: {error}")
    return results, problems
