"""The command line: absl flags, generated from the fields of Config and Settings.

Nothing else reads flags, and nothing here loads TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from lab.errors import LabError
from lab.settings import grid_file, source
from lab.settings.config import Config, Settings
from lab.settings.fields import REFERENCE, allowed, check, fits, refusal
from lab.settings.other_programs import LaunchSettings, ReportSettings, ViewSettings

# Flags that have another name in lab.train.
RENAMED = {"steps": "training_steps", "name": "run_name"}


def parse(argv: Sequence[str]) -> tuple[list[Config], Settings]:
    """Reads trials and settings from a command line, `argv[0]` being the program's name.

    A hyperparameter with several values, separated by commas, stands for as many trials, and
    several of them for their product. The lines of a grid file are read in the same way; a flag
    on the command line overrides them all. Trials of one seed come before those of the next, here
    and not where they run (see processes/pool.py). Flags not given take the defaults of the trial's
    model.

    Raises:
      LabError: a flag does not exist, or a value is invalid; says what is allowed.
      SystemExit: after --help.
    """
    values = _read(argv, _TRAIN, Config, Settings)
    settings = Settings(**_single(values, Settings))
    given = _given(values)
    if settings.grid:
        lines = grid_file.read_lines(settings.grid)
        choices = [one for place, words in lines for one in _line(place, words, given)]
    else:
        choices = list(_choices(given))
    configs = [
        Config(**dict(zip(one, values, strict=True)))
        for seeds in _seeds(settings.seeds)
        for one in choices
        for values in itertools.product(*(one | seeds).values())
    ]
    # A product may hold what another line says, too, and two references be the same file.
    by_name: dict[str, Config] = {}
    for config in configs:
        by_name.setdefault(config.run_name, config)
    configs = list(by_name.values())
    if not configs:
        raise LabError(f"--grid={settings.grid}: has no runs: write the flags of one per line")
    if settings.run_name and len(configs) > 1:
        raise LabError(
            f"--run_name={settings.run_name}: names one run, but there are {len(configs)}"
        )
    first, _, every = settings.shard.partition("/")
    if not (first.isdecimal() and every.isdecimal() and int(first) < int(every)):
        raise LabError(f"--shard={settings.shard}: must be I/N with I from 0 to N - 1")
    return configs[int(first) :: int(every)], settings


def parse_report(argv: Sequence[str]) -> ReportSettings:
    """bin/report's settings; the folder may be given without a flag. Raises as `parse`."""
    if more := [word for word in argv[1:] if not word.startswith("-")][1:]:
        raise LabError(f"{more[0]!r} is a second folder: name one folder with all runs below it")
    words = [f"--logdir={w}" if i and not w.startswith("-") else w for i, w in enumerate(argv)]
    return ReportSettings(**_single(_read(words, _REPORT, ReportSettings), ReportSettings))


def parse_view(argv: Sequence[str]) -> tuple[list[str], list[tuple[int, int]], ViewSettings]:
    """bin/view's run directories, the ranges in --steps, and the rest. Raises as `parse`."""
    paths = [word for word in argv[1:] if not word.startswith("-")]
    words = [argv[0], *(word for word in argv[1:] if word.startswith("-"))]
    settings = ViewSettings(**_single(_read(words, _VIEW, ViewSettings), ViewSettings))
    if not paths:
        raise LabError("name one or more run directories: bin/view logs/RUN")
    found = [re.fullmatch(r"(\d+)\.\.(\d+)", part) for part in settings.steps]
    ranges = [(int(match[1]), int(match[2])) for match in found if match]
    if len(ranges) < len(found) or any(a > b for a, b in ranges):
        raise LabError(f"--steps={','.join(settings.steps)}: must be A..B, such as 1..100")
    return paths, ranges, settings


def parse_launch(argv: Sequence[str]) -> tuple[int, list[str]]:
    """bin/launch's number of workers, and the command behind `--`. Raises as `parse`."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    values = _read(words[:cut], _LAUNCH, LaunchSettings)
    if not words[cut + 1 :]:
        raise LabError("no command to start: bin/launch --workers=2 -- bin/train ...")
    return _single(values, LaunchSettings)["workers"], words[cut + 1 :]


def _line(place: str, words: list[str], given: dict[str, Any]) -> list[dict[str, tuple]]:
    """The choices of a grid's line, overridden by the command line."""
    try:
        return list(_choices(_given(_read([place, *words], "", Config)) | given))
    except LabError as error:
        raise LabError(f"{place}: {error}") from error


def _given(values: flags.FlagValues) -> dict[str, Any]:
    """What was given of Config: the choices by field, and texts by model.KEY."""
    fields = {one.name for one in dataclasses.fields(Config)}
    return {
        name: values[name].value
        for name in values
        if (name in fields or name.startswith(_ARGUMENT)) and values[name].value is not None
    }


def _choices(given: dict[str, Any]) -> Iterator[dict[str, tuple]]:
    """For each model, the values of every field to choose among.

    Raises:
      LabError: what was given does not fit the model; or a file that is referred to is not there,
        or not as it should be.
    """
    fields = dataclasses.fields(Config)
    for model in given.get("model", (Config.model,)):
        found = source.read("model", model)
        for one in fields:
            if one.name in given and one.metadata.get("of", model) != model:
                own = ", ".join(f"--model.{known.name}" for known in found.parameters)
                raise LabError(
                    f"--{one.name} belongs to --model={one.metadata['of']}; "
                    f"--model={' '.join(model.split())} has {own or 'no parameters'}"
                )
        texts = {
            name.removeprefix(_ARGUMENT): text
            for name, text in given.items()
            if name.startswith(_ARGUMENT)
        }
        choices = {name: given.get(name, (value,)) for name, value in found.defaults.items()}
        for flag in ("loss", "data"):
            for reference in filter(REFERENCE.fullmatch, choices[flag]):
                source.read(flag, reference)
        yield choices | {"model": (model,), "model_arguments": found.choices(texts)}


def _seeds(text: str) -> list[dict[str, tuple]]:
    """What to put over the fields of each round of trials: "5" stands for the seeds 0 to 4, "3,7"
    for these two, and "" for the one that each trial gives itself."""
    if not text:
        return [{}]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = list(range(numbers[0]))
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise LabError(f"--seeds={text}: must be a number of seeds, or a list of distinct seeds")
    return [{"seed": (number,)} for number in numbers]


class _Parser(flags.ArgumentParser):
    """Parses what stands behind `=` into a tuple of choices: values of one field."""

    def __init__(self, field: dataclasses.Field, several: bool) -> None:
        self._field, self._several = field, several

    def parse(self, argument: Any) -> tuple:
        return tuple(map(self._value, self._split(argument) if self._several else [argument]))

    def _split(self, text: str) -> list[str]:
        """At the commas; where files are named, at those after which a whole reference stands."""
        parts = text.split(",")
        if not self._field.metadata.get("file"):
            return parts
        found: list[str] = []
        for part in parts:
            if found and not fits(self._field, found[-1]):
                found[-1] += f",{part}"
            else:
                found.append(part)
        return found

    def _value(self, text: Any) -> Any:
        convert: Any = {
            "int": int,
            "float": float,
            "bool": flags.BooleanParser().parse,
            "str": str,
            "tuple[str, ...]": lambda text: tuple(text.split(",")) if text else (),
        }[str(self._field.type)]
        try:
            value = convert(text)
        except ValueError:
            raise refusal(self._field, text) from None
        check(self._field, value)
        return value


def _read(argv: Sequence[str], usage: str, *kinds: type) -> flags.FlagValues:
    """The flags of a command line: the fields of `kinds` and, with a `usage`, --help."""
    values = flags.FlagValues()
    for kind in kinds:
        for field in _with_flags(kind):
            parser = _Parser(field, several=kind is Config and not field.metadata.get("single"))
            boolean = field.type == "bool"
            values[field.name] = flags.Flag(parser, None, field.name, None, "", boolean=boolean)
    if usage:
        flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)
    try:
        words = [argv[0], *values.read_flags_from_files(argv[1:], force_gnu=False)]
        if Config in kinds:
            for name in {m[1] for word in words[1:] if (m := _ARGUMENT_FLAG.match(word))}:
                values[name] = flags.Flag(_TEXT, None, name, None, "")
        rest = values(words)[1:]
    except flags.UnrecognizedFlagError as error:
        guess = RENAMED.get(error.flagname) or str(error).partition("Did you mean: ")[2].rstrip(
            " ?"
        )
        hint = f"did you mean --{guess}?" if guess else "--help lists the flags"
        raise LabError(f"--{error.flagname} is not a flag: {hint}") from error
    except UnicodeDecodeError as error:
        files = [word for word in argv if word.lstrip("-").startswith("flagfile")]
        raise LabError(f"{files[0]}: it, or a file named in it, is not UTF-8 text") from error
    except flags.Error as error:
        raise LabError(" ".join(str(error).removeprefix("ERROR:: ").split())) from error
    if usage and values.help:
        models = values["model"].value or (Config.model,) if Config in kinds else ()
        shown = [source.read("model", model) for model in models[:1]]
        print(_help(usage, [field for kind in kinds for field in _with_flags(kind)], *shown))
        sys.exit(0)
    if rest:
        raise LabError(f"{rest[0]!r} is not a flag: write --name=value (--help lists the flags)")
    return values


def _with_flags(kind: type) -> list[dataclasses.Field]:
    return [one for one in dataclasses.fields(kind) if one.metadata.get("flag", True)]


def _single(values: flags.FlagValues, kind: type) -> dict[str, Any]:
    given = {one: values[one.name].value for one in dataclasses.fields(kind)}
    return {one.name: one.default if found is None else found[0] for one, found in given.items()}


_TEXT: flags.ArgumentParser[str] = flags.ArgumentParser()
_ARGUMENT = "model."  # before the name of a parameter of the model
_ARGUMENT_FLAG = re.compile(r"--?(model\.[^=]*)", re.DOTALL)

_TRAIN = f"""bin/train [--flag=value ...]

Trains a network and records every weight, bias and gradient at every step. The defaults are the
reference recipe, on MNIST; those of another model are the RECIPE in its file (a dict of the flags
below) and, for what it leaves out, these with --reduction=mean --loss=softmax_cross_entropy.
--help --model=FILE.py:NAME shows them, and the model's parameters.

Flags of the groups Model, Loss, Optimizer, Data and Training also take lists:
--learning_rate=0.1,0.01 is two runs, and several lists are the grid of their combinations.
Grids that come with the lab: {", ".join(grid_file.names())}."""

_REPORT = """bin/report [LOGDIR] [--flag=value ...]

Prints a table of all runs below LOGDIR, and writes a page there that answers the lab's questions
from these runs: report.html, its figures as report.json, and the same as the TensorBoard run
`report`."""


_VIEW = """bin/view RUN [RUN ...] [--flag=value ...]

Writes a page that shows every step: view.html in the run directory; of several runs, beside the
first one. It is self-contained and needs only a browser."""


_LAUNCH = """bin/launch [--workers=N] -- bin/train [--flag=value ...]

Starts N workers on this machine that train together, as several machines would."""


def _help(
    usage: str, fields: Sequence[dataclasses.Field], model: source.Source | None = None
) -> str:
    """The text of --help, with the parameters and the defaults of a model."""
    defaults = model.defaults if model else {}
    lines = [usage]
    for field in fields:
        if "group" in field.metadata:
            lines += ["", f"{field.metadata['group']}:"]
        if model and field.metadata.get("of", model.text) != model.text:
            continue
        default = defaults.get(field.name, field.default)
        lines += _entry(field, model.text if model and field.name == "model" else default)
        if model and field.name == "model":
            lines += _parameters(model)
    lines += ["", "Also: --flagfile=FILE reads flags from a file, one per line; --help shows this."]
    return "\n".join(lines)


def _parameters(model: source.Source) -> list[str]:
    """The rows of a model's parameters."""
    if model.text == Config.model:
        about = "a parameter of the model, if it is not mlp; --help --model=NAME lists them"
        return _rows(f"  --{_ARGUMENT}KEY=VALUE", about)
    return [
        row
        for one in model.parameters
        if one.kind
        for row in _rows(
            f"  --{_ARGUMENT}{one.name}={one.shown}",
            f"{one.about} ({_limits(one)})" if one.about else _limits(one),
        )
    ]


def _limits(one: source.Parameter) -> str:
    return one.allowed + (", required" if one.required else "")


def _entry(field: dataclasses.Field, default: Any) -> list[str]:
    """The rows of a field."""
    about = field.metadata["help"]
    if isinstance(default, bool):
        head, limits = f"  --[no]{field.name}", f"default {str(default).lower()}"
    else:
        head = f"  --{field.name}={','.join(default) if isinstance(default, tuple) else default}"
        limits = allowed(field)
    return _rows(head, about if limits == "a string" else f"{about} ({limits})")


def _rows(head: str, about: str) -> list[str]:
    body = textwrap.wrap(about, 62, break_on_hyphens=False)
    if len(head) > 35:
        return [head, *(f"{'':36}{row}" for row in body)]
    return [f"{head if i == 0 else '':36}{row}" for i, row in enumerate(body)]
