"""A grid: a file with the flags of one trial per line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from lab.errors import LabError

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "grids")


def names() -> list[str]:
    """The grids that come with the lab."""
    files = os.listdir(FOLDER)
    return sorted(name.removesuffix(".flags") for name in files if name.endswith(".flags"))


def read_lines(grid: str) -> Iterator[tuple[str, list[str]]]:
    """The trials of a grid, given by name or path: (file and line number, flags) of each line.

    Raises:
      LabError: there is no such grid, or a line's quotes do not match.
    """
    path = os.path.join(FOLDER, f"{grid}.flags") if grid in names() else grid
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(
            f"--grid={grid}: neither a readable file nor one of {', '.join(names())}"
        ) from error
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise LabError(f"{place}: {error}") from error
        if words:
            yield place, words
