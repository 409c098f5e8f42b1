"""What a run prints: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import tqdm

from lab.compare.statistics import wilson_interval
from lab.errors import LabError
from lab.record.run import RunReader
from lab.terminal import command, tensorboard_command


class Reporter:
    """Receives a trial's progress; this one reports nothing. Losses are in nats per example."""

    def there(self, path: str) -> None:
        """The trial was done before and is in `path`: nothing is trained."""

    def begin(self, about: list[str], steps: int, first: int) -> None:
        """The trial is about to run steps first + 1 to `steps`; `about` describes it."""

    def advance(self, step: int) -> None:
        """Steps up to this one are done."""

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """The figures of an evaluation: loss and metrics of the last batch, then those of the test
        set, as test-loss, ..."""

    def notify(self, text: str) -> None:
        """Something that the user should know now."""

    def end(self) -> None:
        """The last step is done."""


class Console(Reporter):
    """Reports one trial on standard output.

    Args:
      overwrite: the argument that would retrain an existing trial.
    """

    def __init__(self, overwrite: str = "--overwrite") -> None:
        self._overwrite = overwrite

    def there(self, path: str) -> None:
        self.notify(f"{path} already exists; {self._overwrite} trains it again")

    def begin(self, about: list[str], steps: int, first: int) -> None:
        print("\n".join(about), flush=True)
        self._bar = tqdm.tqdm(
            total=steps, initial=first, unit="step", disable=not sys.stdout.isatty()
        )

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        if self._bar.disable:
            # On record the batch's loss is as it is minimized, which may be its sum.
            shown = {"loss": "mean loss"}
            words = (f"{shown.get(name, name)} {value:.4f}" for name, value in figures.items())
            print(f"step {step:>6}", *words, sep="  ", flush=True)
        else:
            name, value = list(figures.items())[-1]
            self._bar.set_postfix_str(f"{name} {value:.4f}")

    def notify(self, text: str) -> None:
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def end(self) -> None:
        self._bar.close()


def conclusion(result: dict[str, Any], directory: str) -> str:
    """The last lines of a run."""
    lines = [f"{result['status']} at step {result['step']}: {_figures(result)}"]
    if result["nonfinite"]:
        first = min(note["first_step"] for note in result["nonfinite"].values())
        lines.append(f"NaN or infinity from step {first}: {', '.join(result['nonfinite'])}")
    if result["status"] in ("nonfinite", "collapsed") or result["frozen"]:
        lines[:0] = _broke_first(directory)
    lines.append(f"run directory:  {directory}")
    lines.append(f"page of every step:  {command('view', directory)}")
    lines.append(f"view it with  {tensorboard_command(directory)}")
    return "\n".join(lines)


def _broke_first(directory: str) -> list[str]:
    """A line about the first link of the run that left its range, if the record shows one."""
    from lab.diagnosis import why  # its templates take a tenth of a second to load

    try:
        found = why.diagnose(RunReader(directory), repeat=False)
    except (LabError, OSError):  # the run has ended, whatever can be read of it
        return []
    if not found.finding or not found.finding.kind:
        return []
    return [f"what broke first: {found.line} (details: {command('why', directory)})"]


def _figures(result: dict[str, Any]) -> str:
    correct, total = result["test_correct"], result["test_total"]
    if correct is None and result["test_loss"] is not None:
        metrics = (f"test {n} {v:.4f}" for n, v in result["test_metrics"].items() if v is not None)
        return ", ".join([f"test loss {result['test_loss']:.4f}", *metrics])
    if correct is None:
        return "no evaluation"
    low, high = wilson_interval(correct, total)
    text = (
        f"test accuracy {correct / total:.4f} ({correct:,} of {total:,}; 95% interval "
        f"{low:.4f} to {high:.4f}), mean of batch means {result['readme_accuracy']:.4f}"
    )
    if result["collapsed"] is not None:
        text += f"; every test example is predicted as class {result['collapsed']}"
    if result["frozen"]:
        text += f"; frozen: {', '.join(result['frozen'])}"
    return text
