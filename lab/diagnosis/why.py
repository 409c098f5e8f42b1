"""What broke first in a run, from its record and from retraining the step in question."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jinja2
import numpy as np

import lab
from lab.diagnosis import experiment
from lab.diagnosis.chain import Chain
from lab.diagnosis.culprit import Finding, first_link
from lab.diagnosis.events import LARGE, Event, events, firsts, main_event
from lab.diagnosis.experiment import Outcome
from lab.diagnosis.ranges import CENTRE, FALSE_ALARMS, FIRST
from lab.errors import LabError
from lab.record.directory import json_value
from lab.record.run import RunReader
from lab.settings.as_line import as_line

_USUAL = 3.0  # times the median norm of the gradients: few of them are larger
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lab.diagnosis", "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What broke first.

    Attributes:
      path: of the run.
      event: the gravest event; None if there is none.
      finding: the culprit; its kind is "" if it is unknown, and its reason says why. None
        if nothing happened.
      others: all other events, in order.
      steps: how many are on record.
      unchecked: why the step was not repeated; "" if it was, or was not requested.
      outcome: of the experiment, if one was made.
      remedy: a command, or a line of Python, to try.
    """

    path: str
    event: Event | None
    finding: Finding | None
    others: tuple[Event, ...]
    steps: int
    unchecked: str
    outcome: Outcome | None
    remedy: str

    def __str__(self) -> str:
        return _render("why.txt", self)

    @property
    def line(self) -> str:
        """One line of it."""
        return _render("line.txt", self)

    def as_json(self) -> str:
        """All of it as strict JSON: numbers that are not finite are null."""
        return json.dumps(json_value(self) | {"text": str(self)}, indent=2, allow_nan=False)


def diagnose(run: Any, repeat: bool = True, experiments: bool = False) -> Diagnosis:
    """What broke first in a run.

    Args:
      run: from lab.open_run; a RunReader suffices if nothing is repeated.
      repeat: whether the step in question is retrained.
      experiments: whether the run is repeated with the suspected link changed, and whether inputs,
        losses and gradients of a run without an event are checked.
    """
    chain = Chain(run)
    done = (run.result or {}).get("step", 0)
    if done and not len(chain.steps):
        raise LabError(f"{run.path} has none of its {done:,} steps on record: its event files are "
                       "missing, cut off or damaged")  # fmt: skip
    found = events(chain)
    event, finding, outcome, unchecked = main_event(found), None, None, ""
    if event:
        finding = first_link(chain, event)
    if repeat or experiments:
        try:
            if event and finding:
                finding = experiment.examine(run, chain, event, finding)
                if experiments:
                    outcome = experiment.repeat_changed(run, chain, event, finding)
            elif experiments and len(chain.steps):
                finding = experiment.unseen(run, chain)
                if finding:
                    event = Event("corruption", finding.step, (), False)
        except LabError as error:
            unchecked = str(error)
    others = tuple(e for e in found if e is not event)
    remedy = _remedy(run, chain, event, finding) if event and finding else ""
    return Diagnosis(run.path, event, finding, others, len(chain.steps),
                     unchecked, outcome, remedy)  # fmt: skip


def _remedy(run: RunReader, chain: Chain, event: Event, finding: Finding) -> str:
    """One thing to try."""
    if change := _change(run.config, chain, event, finding):
        return _command(run, **change)
    kind = finding.kind
    what = {"weight": "writes to", "slots": "writes to the slots of"}.get(kind, "contributes to")
    where = finding.tensors[0] if finding.tensors else "the tensors"
    moment = f"lab.open_run({run.path!r}).at({finding.step})"
    if kind == "batch":
        return f"{moment}, and look at the examples of its batch"
    gradient = "" if kind in ("weight", "slots") else "the gradient of "
    return f"{moment}, and see what else {what} {gradient}{where}"


def _change(
    config: dict[str, Any], chain: Chain, event: Event, finding: Finding
) -> dict[str, float]:
    """The flag to change, by name, and its value, which goes further than the run's own."""
    kind, rate = finding.kind, config.get("learning_rate", 0.0)
    sgd = config.get("optimizer") == "sgd"
    warmup = max(config.get("training_steps", 1) // 20, 10)
    early = kind == "rate" and finding.step <= FIRST and not sgd
    if early and config.get("warmup_steps", 0) < warmup:
        return {"warmup_steps": warmup}
    scores = kind == "growth" and finding.tensors[0].startswith("scores")
    free = "qk_norm=true" not in config.get("model_arguments", ())
    if scores and free and config.get("model") == "transformer":
        return {"model.qk_norm": 1}
    if kind == "epsilon":
        return {"epsilon": _two_digits(max(100 * config.get("epsilon", 0.0), 1e-7))}
    if kind == "batch":
        clip = _clip_norm(chain, finding.step)
        if not clip or not 0 < config.get("clip_norm", 0.0) <= clip:
            return {"clip_norm": clip} if clip else {}
    if kind in ("flat", "") and event.kind in ("plateau", "collapse", "freeze") and _slow(chain):
        return {"learning_rate": _two_digits(10 * rate or 0.001)}
    if kind in ("rate", "growth", "flat", "batch", ""):
        return {"learning_rate": _two_digits(rate / (10 if sgd else 3)) or 0.001}
    return {}


def _clip_norm(chain: Chain, step: int) -> float:
    """A limit of all gradients together that leaves the usual steps before this one alone, but not
    this one; 0 if there is none, or their norms are not on record."""
    norms, row = np.linalg.norm(chain.gradient, axis=1), int(np.searchsorted(chain.steps, step))
    before = norms[max(row - CENTRE, 0) : row]
    before = before[np.isfinite(before)]
    limit = _two_digits(_USUAL * float(np.median(before))) if len(before) else 0.0
    return limit if (norms[row : row + 1] > limit).any() and np.isfinite(norms[row]) else 0.0


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _slow(chain: Chain) -> bool:
    """Whether each update was less than a hundredth of the weights: none was too large."""
    size, update = (np.linalg.norm(norms, axis=1) for norms in (chain.weight, chain.applied))
    return bool(chain.tensors) and bool((update < LARGE / 10 * size).all())


def _command(run: RunReader, **flags: float) -> str:
    """The run again with some other flag: of bin/train, or of lab.train if objects were given."""
    if not run.circumstances.get("given"):
        return as_line(run.config, **flags)
    ((flag, value),) = flags.items()
    if flag.startswith("model."):
        return f"lab.train(..., {flag.removeprefix('model.')}={value})"
    rule = run.circumstances.get("rule", "").partition("(")[0]  # of the user's own
    if not rule:
        names = {name.lower(): name for name in lab.__all__}
        rule = f"lab.{names[run.config.get('optimizer', 'sgd')]}"
    name = {"warmup_steps": "warmup"}.get(flag, flag)
    fields = f"{value}, ..." if name == "learning_rate" else f"..., {name}={value}"
    return f"lab.train(..., optimizer={rule}({fields}))"


def _render(name: str, found: Diagnosis) -> str:
    facts = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    links = firsts(found.event) if found.event else []
    text = _TEMPLATES.get_template(name).render(**facts, links=links, risk=FALSE_ALARMS)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
