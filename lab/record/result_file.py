"""result.json, read back: every field is checked before it is used. No TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

from lab.errors import LabError
from lab.record.directory import FINISHED, RESULT, read_object
from lab.settings.config import Config, renamed
from lab.settings.fields import Checked, from_json


def _limited(**limits: Any) -> Any:
    return dataclasses.field(default=None, metadata={"least": 0, **limits})


@dataclasses.dataclass(frozen=True)
class StoredResult(Checked):
    """What is read of a run's result.json, beside its config; where it is null there is no such
    figure. Accuracies are shares of 1, losses in nats, seconds those of training."""

    status: str = _limited(choices=(*FINISHED, "interrupted"))
    step: int = _limited(below=2**31)
    test_correct: int | None = _limited(below=2**31)
    test_total: int | None = _limited(least=1, below=2**31)
    test_accuracy: float | None = _limited(below=1.0000001)
    readme_accuracy: float | None = _limited(below=1.0000001)
    test_loss: float | None = None
    test_metrics: dict[str, float | None] | None = None
    collapsed: int | None = _limited(below=2**31)
    frozen: tuple[str, ...] | None = None
    effective_learning_rate: float | None = _limited()
    nonfinite: dict[str, dict[str, int]] | None = None
    evaluations: dict[str, tuple[float | None, ...]] | None = None
    seconds: float | None = _limited()
    devices: tuple[str, ...] | None = None
    data: str | None = None
    network: str | None = None
    given: tuple[str, ...] | None = None
    model_files: str | None = None
    loss_files: str | None = None
    rule: str | None = None
    replicas: int | None = _limited(least=1, below=2**31)
    workers: int | None = _limited(least=1, below=2**31)
    tensorflow: str | None = None
    versions: dict[str, str] | None = None


def parse_result(text: str, place: str) -> dict[str, Any]:
    """As `checked_result`, of the text of a result.json; LabError also if it is not JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabError(f"{place}: not JSON: {error}") from None
    return checked_result(values, place)


def checked_result(values: Any, place: str) -> dict[str, Any]:
    """What result.json holds -> its fields and its config, as plain JSON values. A field that a
    run of another version lacks is null; its config is as it is there.

    Raises:
      LabError: in one line, what does not fit; names `place`, field and value.
    """
    if not isinstance(values, dict) or "config" not in values or "status" not in values:
        raise LabError(f"{place}: not a run's result: it needs a 'config' and a 'status'")
    found = from_json(StoredResult, values, f"{place}: ")
    correct, total = found["test_correct"], found["test_total"]
    if found["status"] == "collapsed" and (correct is None or total is None):
        raise LabError(
            f"{place}: collapsed, but test_correct of test_total is {correct} of {total}"
        )
    if correct is not None and (total is None or correct > total):
        raise LabError(f"{place}: test_correct is {correct}: must be at most test_total, {total}")
    fields = renamed(values["config"])
    known = from_json(Config, fields, f"{place}: config.")
    if "seed" not in fields:
        raise LabError(f"{place}: config.seed is missing")
    config = {name: known.get(name, _finite(value)) for name, value in fields.items()}
    return found | {"config": json.loads(json.dumps(config))}


def _finite(value: Any) -> Any:
    """NaN and infinity are no figures, and the table's own JSON must not hand them on."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished_result(directory: str) -> dict[str, Any] | None:
    """The result of the run in a directory; None if it has not come to its end, or its result.json
    is damaged: the run is then resumed from its last checkpoint, and writes it anew."""
    try:
        values = read_object(os.path.join(directory, RESULT))
        found = checked_result(values, RESULT)
    except LabError:
        return None
    return values if found["status"] in FINISHED else None
