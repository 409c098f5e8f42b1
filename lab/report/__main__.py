"""bin/report: what lies below a folder of runs, as a table."""

from __future__ import annotations

import sys

from lab import flags, results, tables
from lab.errors import LabError


def main() -> int:
    """Prints the table of all runs; returns the exit status."""
    try:
        settings = flags.parse_report(sys.argv)
        found, problems = results.read_results(settings.logdir)
    except LabError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(tables.FORMATS[settings.format](results.make_table(found, problems=problems)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
