"""result.json files -> what the table needs of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.record import result_file


@dataclass(frozen=True)
class Result:
    """What the table needs of one result.json. Accuracies are shares of 1, seconds are seconds."""

    path: str
    config: dict[str, Any]  # without the seed
    seed: int
    status: str
    correct: int  # of `total` test images; both 0 if the run has no count
    total: int
    readme_accuracy: float | None
    collapsed: int | None
    seconds: float | None
    evaluations: tuple[float, ...]  # test accuracies, in the order of the steps

    @property
    def accuracy(self) -> float:
        """correct / total, rather than the file's own rounding of it; needs total > 0."""
        return self.correct / self.total


def parse_result(text: str, path: str) -> Result:
    """The Result in the text of a result.json. Raises as result_file.parse_result."""
    found = result_file.parse_result(text, path)
    same = ("config", "status", "readme_accuracy", "collapsed", "seconds")
    accuracies = (found["evaluations"] or {}).get("test_accuracy", ())
    return Result(
        path=path,
        seed=found["config"].pop("seed"),
        correct=found["test_correct"] or 0,
        total=found["test_total"] or 0,
        evaluations=tuple(a for a in accuracies if a is not None),
        **{name: found[name] for name in same},
    )


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
