"""bin/bench: command line in, table out."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import signal
import sys
import tempfile
from typing import Any, NoReturn

import numpy as np

from bench import chart, tables
from bench.parts import PARTS, PEER_NAMES, Bench
from bench.workers import FOLDER, ROOT, Failed, say


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message}\n")


def _several(allowed: list[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = [] if text == "none" else list(dict.fromkeys(text.split(",")))
        wrong = [name for name in names if name not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="bin/bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--parts",
        type=_several(list(PARTS)),
        default=list(PARTS),
        help=f"some of {','.join(PARTS)}",
    )
    parser.add_argument(
        "--rules", type=_several(["sgd", "adam"]), default=["sgd", "adam"], help="sgd, adam or both"
    )
    parser.add_argument(
        "--peers",
        type=_several(PEER_NAMES),
        default=PEER_NAMES,
        help=f"some of {','.join(PEER_NAMES)}, or none",
    )
    parser.add_argument("--turns", type=int, help="of each contestant (16)")
    parser.add_argument(
        "--quick", action="store_true", help="everything, but too little of it to tell anything"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="the file for the results, saved after each part (bench/last.json; a run with no "
        "flag, once it is complete, bench/results.json)",
    )
    parser.add_argument(
        "--chart",
        action="store_true",
        help="measure nothing: draw docs/bench.svg "
        "from bench/results.json, and put its table into bench/README.md",
    )
    arguments = parser.parse_args()
    if not arguments.parts or not arguments.rules:
        parser.error("--parts and --rules: name one at least")
    if arguments.turns is not None and arguments.turns < 1:
        parser.error(f"--turns={arguments.turns}: must be 1 or more")
    out = arguments.out
    if out and not arguments.chart:
        if out.exists() and not out.is_file():
            parser.error(f"--out={out}: is no file")
        if not os.access(out.parent, os.W_OK | os.X_OK):
            parser.error(f"--out={out}: cannot write into {out.parent}")
    return arguments


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Status 0, also where contestants failed: the table says which."""
    arguments = _arguments()
    if arguments.chart:
        try:
            results = json.loads((arguments.out or FOLDER / "results.json").read_text())
        except (OSError, ValueError) as error:
            say(f"no results to draw ({error}): bin/bench makes them")
            return 1
        try:
            chart.draw(results, ROOT / "docs" / "bench.svg")
            chart.fill(FOLDER / "README.md", results)
        except ImportError as error:
            say(f"{error}: bin/python -m pip install matplotlib")
            return 1
        except Failed as reason:
            say(str(reason))
            return 1
        return 0
    out = arguments.out or FOLDER / "last.json"
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "quick": arguments.quick,
        "rules": arguments.rules,
        "parts": {},
    }
    if tables.loaded(results["machine"]):
        say(
            f"the machine is not quiet (load {results['machine']['load']:.1f}): figures will spread"
        )

    def stop(number: int, _: Any) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        _measure(arguments, results, out)
    except (KeyboardInterrupt, SystemExit):
        done = ", ".join(results["parts"])
        say(f"stopped: {f'{done} saved as {out}' if done else 'nothing was saved'}")
        raise
    if _whole(arguments):
        out = FOLDER / "results.json"
        _write(out, results)
    print(tables.to_markdown(results))
    say(f"saved as {out}")
    return 0


def _whole(arguments: argparse.Namespace) -> bool:
    """Everything is at its default."""
    return (
        arguments.parts == list(PARTS)
        and arguments.rules == ["sgd", "adam"]
        and arguments.peers == PEER_NAMES
        and arguments.turns is None
        and not arguments.quick
        and arguments.out is None
    )


def _measure(arguments: argparse.Namespace, results: dict[str, Any], out: pathlib.Path) -> None:
    """Adds part by part to the results, and saves them after each."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        data = os.path.join(scratch, "data.npz")
        _save(data)
        bench = Bench(
            data,
            scratch,
            arguments.rules,
            arguments.peers,
            arguments.turns or (3 if arguments.quick else 16),
            0.02 if arguments.quick else 0.4,
            arguments.quick,
        )
        for part in arguments.parts:
            try:
                found = PARTS[part](bench)
            except Exception as error:
                reason = str(error) if isinstance(error, Failed) else repr(error)
                found = {"error": reason}
                say(f"{part}: {reason}")
            results["parts"][part] = found
            _write(out, results)


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """All of it or nothing."""
    path = path.resolve()
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(path)


def _save(path: str) -> None:
    from lab import data

    dataset = data.load()
    np.savez(path, images=dataset.train_images, labels=dataset.train_labels)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
