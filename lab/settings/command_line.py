"""The command line: absl flags, generated from the fields of Config and Settings.

Nothing else reads flags, and nothing here loads TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from lab.errors import LabError
from lab.settings import grid_file
from lab.settings.config import Config, LaunchSettings, ReportSettings, Settings
from lab.settings.fields import allowed, check, refusal


def parse(argv: Sequence[str]) -> tuple[list[Config], Settings]:
    """Trials and settings from a command line, `argv[0]` being the program's name.

    A hyperparameter with several values, separated by commas, stands for as many trials, and
    several of them for their product. The lines of a grid file are read in the same way; a flag
    on the command line overrides them all. Trials of one seed come before those of the next.

    Raises:
      LabError: a flag that does not exist, or a value that does not fit; says what is allowed.
      SystemExit: after --help.
    """
    values = _read(argv, _TRAIN, Config, Settings)
    settings = Settings(**_single(values, Settings))
    lines = [_choices(values, Config)]
    if settings.grid:
        given = {name: choices for name, choices in lines[0].items() if values[name].present}
        lines = [_line(*line) | given for line in grid_file.read_lines(settings.grid)]
    configs = [
        Config(**dict(zip(line, values, strict=True)))
        for seeds in _seeds(settings.seeds)
        for line in lines
        for values in itertools.product(*(line | seeds).values())
    ]
    configs = list(dict.fromkeys(configs))  # a product may hold what another line says, too
    if not configs:
        raise LabError(f"--grid={settings.grid}: has no run in it, write the flags of one a line")
    if settings.run_name and len(configs) > 1:
        raise LabError(f"--run_name={settings.run_name}: names one run, but these are many")
    first, _, every = settings.shard.partition("/")
    if not (first.isdecimal() and every.isdecimal() and int(first) < int(every)):
        raise LabError(f"--shard={settings.shard}: must be I/N with I from 0 to N - 1")
    return configs[int(first) :: int(every)], settings


def parse_report(argv: Sequence[str]) -> ReportSettings:
    """bin/report's settings; the folder may stand without a flag. Raises as `parse`."""
    words = [f"--logdir={w}" if i and not w.startswith("-") else w for i, w in enumerate(argv)]
    return ReportSettings(**_single(_read(words, _REPORT, ReportSettings), ReportSettings))


def parse_launch(argv: Sequence[str]) -> tuple[int, list[str]]:
    """bin/launch's number of workers, and the command behind `--`. Raises as `parse`."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    values = _read(words[:cut], _LAUNCH, LaunchSettings)
    if not words[cut + 1 :]:
        raise LabError("no command to start: bin/launch --workers=2 -- bin/train ...")
    return _single(values, LaunchSettings)["workers"], words[cut + 1 :]


def _line(place: str, words: list[str]) -> dict[str, tuple]:
    """The choices of a grid's line."""
    try:
        return _choices(_read([place, *words], "", Config), Config)
    except LabError as error:
        raise LabError(f"{place}: {error}") from error


def _seeds(text: str) -> list[dict[str, tuple]]:
    """What to put over the fields of each round of trials: "5" stands for the seeds 0 to 4, "3,7"
    for these two, and "" for the one that each trial says itself."""
    if not text:
        return [{}]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = list(range(numbers[0]))
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise LabError(f"--seeds={text}: must be how many seeds, or a list of different ones")
    return [{"seed": (number,)} for number in numbers]


class _Parser(flags.ArgumentParser):
    """Parses what stands behind `=` into a tuple of choices: values of one field."""

    def __init__(self, field: dataclasses.Field, several: bool) -> None:
        self._field, self._several = field, several

    def parse(self, argument: Any) -> tuple:
        return tuple(map(self._value, argument.split(",") if self._several else [argument]))

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
        for field in dataclasses.fields(kind):
            parser = _Parser(field, several=kind is Config and not field.metadata.get("single"))
            boolean = field.type == "bool"
            values[field.name] = flags.Flag(parser, None, field.name, None, "", boolean=boolean)
    if usage:
        flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)
    try:
        rest = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        guess = str(error).partition("Did you mean: ")[2].rstrip(" ?")
        hint = f"did you mean --{guess}?" if guess else "--help lists the flags"
        raise LabError(f"--{error.flagname} is not a flag: {hint}") from error
    except flags.Error as error:
        raise LabError(" ".join(str(error).removeprefix("ERROR:: ").split())) from error
    if usage and values.help:
        print(_help(usage, [field for kind in kinds for field in dataclasses.fields(kind)]))
        sys.exit(0)
    if rest:
        raise LabError(f"{rest[0]!r} is not a flag: write --name=value (--help lists the flags)")
    return values


def _choices(values: flags.FlagValues, kind: type) -> dict[str, tuple]:
    """By field, the values to choose among: the default alone where the flag was not given."""
    return {
        field.name: (field.default,) if (found := values[field.name].value) is None else found
        for field in dataclasses.fields(kind)
    }


def _single(values: flags.FlagValues, kind: type) -> dict[str, Any]:
    return {name: choices[0] for name, choices in _choices(values, kind).items()}


_TRAIN = f"""bin/train [--flag=value ...]

Trains a network on MNIST and records every weight, bias and gradient at every step. The defaults
are the reference recipe. Flags of the groups Model, Loss, Optimizer, Data and Training take lists
too: --learning_rate=0.1,0.01 is two runs, and several lists are the grid of their products.
Grids that come with the lab: {", ".join(grid_file.names())}."""

_REPORT = """bin/report [LOGDIR] [--flag=value ...]

Prints the table of all runs below LOGDIR, and writes into it a page that answers from these runs
what the lab asks: report.html, its figures as report.json, and the same as TensorBoard's run
`report`."""


_LAUNCH = """bin/launch [--workers=N] -- bin/train [--flag=value ...]

Starts so many workers on this machine that train together, as several machines would."""


def _help(usage: str, fields: Sequence[dataclasses.Field]) -> str:
    lines = [usage]
    for field in fields:
        if "group" in field.metadata:
            lines += ["", f"{field.metadata['group']}:"]
        lines += _entry(field)
    lines += ["", "Also: --flagfile=FILE reads flags from a file, one a line; --help shows this."]
    return "\n".join(lines)


def _entry(field: dataclasses.Field) -> list[str]:
    default, about = field.default, field.metadata["help"]
    if isinstance(default, bool):
        head, limits = f"  --[no]{field.name}", f"default {str(default).lower()}"
    else:
        head = f"  --{field.name}={','.join(default) if isinstance(default, tuple) else default}"
        limits = allowed(field)
    if limits != "a text":
        about += f" ({limits})"
    body = textwrap.wrap(about, 62, break_on_hyphens=False)
    if len(head) > 35:
        return [head, *(f"{'':36}{row}" for row in body)]
    return [f"{head if i == 0 else '':36}{row}" for i, row in enumerate(body)]
