"""`lab.train`: a run from a script or a notebook."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lab.data import Data
from lab.errors import LabError
from lab.models.optimizers import RULES, Rule
from lab.processes.stop import Stop
from lab.settings import source
from lab.settings.command_line import RENAMED
from lab.settings.config import Config, Settings
from lab.step.placement import threads_in_use
from lab.step.replica import PerExample
from lab.training import build, trial
from lab.training.opened import Run
from lab.training.problem import problem_with
from lab.training.progress import Console, Reporter, conclusion


def train(
    model: Any = "mlp",
    data: Data | str | None = None,
    loss: str | PerExample | None = None,
    metrics: Mapping[str, PerExample] | None = None,
    optimizer: Rule | str | None = None,
    *,
    verbose: bool = True,
    **flags: Any,
) -> Run:
    """Trains a model and records every step, as `bin/train` does; returns the run.

    A run interrupted by Ctrl-C or the end of the process is resumed by the same call;
    a finished one is opened.

    Args:
      model: a callable with `trainable_variables`, such as a tf.Module or a Keras model; a function
        or class that creates it, which is given `seed` if it accepts that, and which several
        devices require; or what --model takes: "mlp", "convnet", "transformer", "FILE.py:NAME". Its
        call is given `training`, `seed` (int64 [2], new at each step) and `step` if it accepts
        them; that of a Keras model only `training`.
      data: a `lab.Data`, or what --data takes. Default: that of the model's recipe, or "mnist".
      loss: (y, output) -> floating [batch, ...], or what --loss takes. The loss of an example is
        its mean over all axes but the first. Default: the model's recipe, or
        "softmax_cross_entropy".
      metrics: by name, functions like the loss. Default: the accuracy, where y are the labels of
        classes.
      optimizer: such as `lab.Adam(1e-3)`, or what --optimizer takes.
      verbose: print the progress, the result and how to view it.
      **flags: any other flag of bin/train (see its --help), with `steps` for --training_steps and
        `name` for --run_name: batch_size, seed, devices, logdir, overwrite, watch, ...; and, of a
        model given by name, its constructor's arguments. `threads` is what TensorFlow uses, if it
        is already running in this process.

    Raises:
      LabError: an argument is invalid; one line says what is wrong and what is allowed.
      KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    started = time.monotonic()
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    read = isinstance(data, Data) and data.source  # then its name says it all
    objects = {"model": model, "data": None if read else data, "loss": loss, "metrics": metrics}
    given = {n for n, value in objects.items() if not (value is None or isinstance(value, str))}
    if not (optimizer is None or isinstance(optimizer, (str, Rule))):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise LabError(f"optimizer is {name}: must be an object such as lab.Adam(1e-3), or a name")
    if not (data is None or isinstance(data, (Data, str))):
        raise LabError(
            f"data is {type(data).__name__}: must be a lab.Data, such as lab.Data(x, y), or what "
            "--data takes"
        )
    config, settings = _configured(model, data, loss, optimizer, dict(flags))
    problem = problem_with(config, model=model, data=data, loss=loss, metrics=metrics)
    if isinstance(optimizer, Rule):
        problem = dataclasses.replace(problem, rule=optimizer)
        if type(optimizer) not in RULES.values():
            given.add("optimizer")
    problem = dataclasses.replace(problem, given=tuple(sorted(given)))
    with _stop() as stop, build.seed_kept():
        reporter = Console("overwrite=True") if verbose else Reporter()
        path, result = trial.run(config, settings, problem, reporter, stop, started)
    if verbose:
        print(conclusion(result, path))
    if stop.signal:
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"{path} is saved; the same call resumes it")
        raise SystemExit(stop.status)
    return Run(path, problem)


def _configured(
    model: Any, data: Any, loss: Any, optimizer: Any, flags: dict[str, Any]
) -> tuple[Config, Settings]:
    """The config and settings that arguments stand for.

    Raises:
      LabError: names the argument, and what it may be.
    """
    flags = {
        RENAMED.get(name, name): build.plain(value)
        for name, value in flags.items()
        if value is not None
    }
    of_config = {one.name for one in dataclasses.fields(Config)}
    of_settings = {one.name for one in dataclasses.fields(Settings)} - {"grid", "seeds", "shard"}
    arguments = _arguments(model, flags.keys() - of_config - of_settings, flags)
    for name in flags.keys() - of_config - of_settings - arguments.keys():
        near = difflib.get_close_matches(name, of_config | of_settings, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise LabError(f"{name} is neither an argument of lab.train nor a flag of bin/train{hint}")
    named, place = _name_of(model)
    values = source.defaults(place)
    values["model"] = named
    if data is not None:
        values["data"] = _data_name(data)
    if arguments:
        values["model_arguments"], *more = source.read("model", model).choices(arguments)
        if more:
            raise LabError("an argument of a model has a comma: lab.train takes one value of each")
    if loss is not None:
        values["loss"], _ = _name_of(loss)
    if isinstance(optimizer, Rule):
        fields = build.fields_of(optimizer)
        if twice := sorted(fields.keys() & flags.keys()):
            raise LabError(
                f"{twice[0]} belongs to the optimizer: pass it to {type(optimizer).__name__}"
            )
        values |= fields
    elif optimizer is not None:
        values["optimizer"] = optimizer
    values |= {name: value for name, value in flags.items() if name in of_config}
    if isinstance(data, Data) and data.is_function:
        size = flags.get("batch_size", len(data.x))
        if size != len(data.x):
            raise LabError(f"batch_size={size}: the batches of {data.name} have {len(data.x)}")
        values["batch_size"] = len(data.x)
    if "watch" in flags:
        watch = flags["watch"]
        values["watch"] = tuple(filter(None, watch.split(",")) if isinstance(watch, str) else watch)
    if "threads" not in flags and (threads := threads_in_use()):
        values["threads"] = threads
    settings = Settings(**{name: value for name, value in flags.items() if name in of_settings})
    return Config(**values), settings


def _arguments(model: Any, names: Iterable[str], flags: Mapping[str, Any]) -> dict[str, str]:
    """Of some arguments those that a named model's constructor takes, as texts like a flag's."""
    if not isinstance(model, str) or model == "mlp":
        return {}
    known = {one.name for one in source.read("model", model).parameters}
    found = {}
    for name in known & {*names}:
        value = flags[name]
        if isinstance(value, (tuple, list)):
            found[name] = "x".join(map(str, value))
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def _name_of(value: Any) -> tuple[str, str]:
    """What a config calls a model or a loss, FILE.py:NAME for objects; and the same with
    the file's folder."""
    if isinstance(value, str):
        return value, value
    if not callable(value):
        raise LabError(f"{value!r} is neither a model nor a loss: must be callable, or a name")
    named = value if hasattr(value, "__name__") else type(value)
    try:
        path = inspect.getsourcefile(named) or ""
    except (OSError, TypeError):
        path = ""
    name = "".join(c for c in named.__name__ if c.isidentifier() or c.isdecimal()) or "made"
    path = path if path.endswith(".py") else "notebook.py"
    return f"{os.path.basename(path)}:{name}", f"{path}:{name}"


def _data_name(data: Any) -> str:
    """What a config calls some data."""
    if isinstance(data, str):
        return data
    name = getattr(data, "name", "data")
    word = "".join(c if c.isalnum() else "_" for c in name)
    return getattr(data, "source", "") or f"data.py:data_{word}"


def _stop() -> AbstractContextManager[Any]:
    """Notes signals, where that can be done: in the main thread."""
    if threading.current_thread() is threading.main_thread():
        return Stop(lives_on=True)
    return nullcontext(Stop())
