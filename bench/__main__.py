"""bin/bench: command line in, table out."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from bench import chart, tables
from bench.parts import PARTS, PEER_NAMES, Bench
from bench.workers import FOLDER, ROOT, Failed, log
from lab import data, machine

RULES = ["sgd", "adam"]
# What keeps all contestants to the instructions of an older CPU: XLA's programs; oneDNN's kernels;
# PyTorch's kernels, and the products that it has of MKL.
ISAS = {
    "avx2": {
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}

# The files of the runs that are kept, by their flags.
_KEPT = {(): "results.json", ("--isa=avx2",): "results-avx2.json"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message}\n")


def _some_of(allowed: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="bin/bench", description=__doc__, allow_abbrev=False)
    choices = {"--parts": list(PARTS), "--rules": RULES, "--peers": [*PEER_NAMES, "none"]}
    for flag, names in choices.items():
        text = f"some of {','.join(names)} (all of them, but gpu)"
        default = [name for name in names if name != "gpu"]
        parser.add_argument(flag, type=_some_of(names), default=default, help=text)
    parser.add_argument("--quick", action="store_true", help="everything, but too short to compare")
    parser.add_argument("--isa", choices=ISAS, help="all as on a CPU with no later instructions")
    text = "the file of the results, saved after each part (bench/last.json)"
    parser.add_argument("--out", type=pathlib.Path, help=text)
    text = "only draw docs/bench.svg, and put the tables into bench/README.md, from results*.json"
    parser.add_argument("--chart", action="store_true", help=text)
    arguments = parser.parse_args()
    default = FOLDER / ("results.json" if arguments.chart else "last.json")
    out = arguments.out = arguments.out or default
    if (out.exists() and not out.is_file()) or not os.access(out.parent, os.W_OK | os.X_OK):
        parser.error(f"--out={out}: cannot be written")
    return arguments


def main() -> int:
    """Status 0, also where contestants failed: the table says which."""
    arguments = _arguments()
    if arguments.chart:
        return _chart(arguments.out)
    os.environ.update(ISAS.get(arguments.isa, {}))
    out = arguments.out
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": machine.cpu(),
            "cores": len(machine.cores()),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": f"{platform.system()}, Python {platform.python_version()}",
            "load": os.getloadavg()[0],
        },
        "quick": arguments.quick,
        "rules": arguments.rules,
        "parts": {},
    }
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _measure(arguments, results)
    except (KeyboardInterrupt, SystemExit):
        done = ", ".join(results["parts"])
        log(f"stopped: {f'{done} saved as {out}' if done else 'nothing was saved'}")
        raise
    if name := _KEPT.get(tuple(sys.argv[1:])):
        out = FOLDER / name
        _write(out, results)
    print(tables.to_markdown(results))
    log(f"saved as {out}")
    return 0


def _measure(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Adds part by part to the results, and saves them after each."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        _save_data(os.path.join(scratch, "data.npz"))
        bench = Bench(scratch, arguments.rules, arguments.peers, arguments.quick)
        for part in arguments.parts:
            log(f"part {part}")
            try:
                results["parts"][part] = PARTS[part](bench)
            except Exception as error:
                reason = str(error) if isinstance(error, Failed) else repr(error)
                results["parts"][part] = {"error": reason}
                log(f"{part}: {reason}")
            _write(arguments.out, results)


def _save_data(path: str) -> None:
    dataset = data.load()
    np.savez(path, images=dataset.x, labels=dataset.y)


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """All of it or nothing."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(path)


def _chart(path: pathlib.Path) -> int:
    try:
        older = path.with_name("results-avx2.json")
        paths = [path, *([older] if older.exists() and older != path else [])]
        results = [json.loads(one.read_text()) for one in paths]
        chart.draw(results[0], ROOT / "docs" / "bench.svg")
        chart.fill(FOLDER / "README.md", *results)
    except (OSError, ValueError, ImportError, Failed) as error:
        log(f"no chart: {error}")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
