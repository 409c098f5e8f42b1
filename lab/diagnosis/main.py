"""bin/why: what broke first in a run.

0: diagnosed, even if nothing broke; 2: a wrong command line, or not a run; 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

import lab
from lab.errors import LabError
from lab.terminal import fail, program


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabError(message)


@program
def main() -> int:
    """Prints the diagnosis; returns the exit status."""
    parser = _Parser(prog="bin/why", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="run directory")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--record", action="store_true", help="use only the record, which is fast")
    text = "also repeat the run with the suspected link changed"
    parser.add_argument("--experiment", action="store_true", help=text)
    try:
        flags = parser.parse_args()
        run = lab.open_run(flags.run)
        found = run.why(repeat=not flags.record, experiments=flags.experiment)
    except LabError as error:
        return fail("why", error, 2)
    except KeyboardInterrupt:
        return 130
    print(found.as_json() if flags.json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
