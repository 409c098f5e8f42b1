"""bin/view: every step of runs on one page.

0: done; 2: a wrong command line; 1: any other error that the user can fix; 130: interrupted.
"""

from __future__ import annotations

import os
import sys

from lab.errors import LabError
from lab.record.directory import write_file
from lab.record.run import RunReader
from lab.settings import command_line
from lab.terminal import fail, program
from lab.viewer import html_file
from lab.viewer.pack import pack
from lab.viewer.server import Server


@program
def main() -> int:
    """Writes the page, or serves it; returns the exit status."""
    try:
        paths, always, settings = command_line.parse_view(sys.argv)
    except LabError as error:
        return fail("view", error, 2)
    try:
        runs = [RunReader(path) for path in paths]
        if settings.follow:
            _follow(Server(runs, settings.port))
            return 0
        folder = paths[0] if len(paths) == 1 else os.path.join(paths[0], os.pardir)
        target = settings.out or os.path.normpath(os.path.join(folder, "view.html"))
        packed = pack(runs, always)
        _write(target, html_file.as_html(packed))
    except LabError as error:
        return fail("view", error, 1)
    except KeyboardInterrupt:
        return fail("view", "interrupted: no page was written", 130)
    thinned = [run["name"] for run in packed["runs"] if run["thinned"]]
    if thinned:
        print(f"not every step of {', '.join(thinned)} fits: --steps=A..B keeps those from A to B")
    print(f"open in a browser:  {target}")
    return 0


def _follow(server: Server) -> None:
    print(f"open in a browser:  {server.address}  (Ctrl-C to stop)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def _write(path: str, text: str) -> None:
    try:
        write_file(path, text)
    except OSError as error:
        raise LabError(
            f"{path} cannot be written ({error.strerror}): choose another file with --out=FILE"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
