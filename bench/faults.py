"""Faults planted into small runs, and what `run.why` says of them: python -m bench.faults.

Each line of the results is one run, so that a benchmark that was stopped goes on where it was.
`--table` puts them into BUILD.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

from bench import faults_plant as plant
from lab.step import placement

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "faults.jsonl"
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->\n"
QUIET = "no fault"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--seeds", default="100,101,102,103,104", help="of the runs with a fault")
    parser.add_argument("--quiet", type=int, default=20, help="runs without a fault of a network")
    parser.add_argument("--networks", default=",".join(plant.NETWORKS))
    parser.add_argument("--faults", default=",".join(plant.FAULTS))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    text = "ask without experiments, from the record alone"
    parser.add_argument("--record", action="store_true", help=text)
    parser.add_argument("--table", action="store_true", help="only put the table into BUILD.md")
    flags = parser.parse_args()
    if not flags.table:
        placement.set_threads(1)
        seeds, networks = [int(s) for s in flags.seeds.split(",")], flags.networks.split(",")
        asked = [(name, network, seed) for seed in seeds for network in networks
                 for name in filter(None, flags.faults.split(","))]  # fmt: skip
        asked += [(QUIET, n, 200 + i) for i in range(flags.quiet) for n in networks]
        done = {(r["fault"], r["network"], r["seed"]) for r in _read(flags.out)}
        for one in asked:
            if one not in done:
                row = _try(*one, flags.record)
                with open(flags.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    if flags.table:
        page = ROOT / "BUILD.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(before + BEGIN + _table(_read(flags.out)) + END + rest.split(END)[1])
    return 0


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _try(name: str, network: str, seed: int, record: bool) -> dict[str, Any]:
    """Trains one run, asks why, and compares."""
    fault = None if name == QUIET else plant.choose(name, network, seed)
    folder = tempfile.mkdtemp(prefix="faults-")
    try:
        with plant.planted(fault):
            begun = time.process_time()
            run = plant.train(network, seed, fault, folder, threads=1)
            trained = time.process_time()
            found = run.why(repeat=not record, experiments=not record)
            asked = time.process_time()
    finally:
        shutil.rmtree(folder)
    said, event = found.finding, found.event
    row: dict[str, Any] = {
        "fault": name, "network": network, "seed": seed,
        "event": event.kind if event else "", "visible": bool(event and event.visible),
        "invisible": sum(not e.visible for e in ((event,) if event else ()) + found.others),
        "kind": said.kind if said else "", "step": said.step if said else 0,
        "tensors": list(said.tensors) if said else [], "rows": list(said.rows) if said else [],
        "reason": said.reason if said else "", "unchecked": found.unchecked,
        "gone": found.outcome.gone if found.outcome else None,
        "seconds": [round(trained - begun, 1), round(asked - trained, 1)],
    }  # fmt: skip
    if fault:
        hit = said.facts.get("tensors", said.tensors) if said else ()
        row |= {"true": [plant.FAULTS[name], fault.step, fault.tensor, list(fault.examples)]}
        row["kind_right"] = bool(said and said.kind == plant.FAULTS[name])
        row["step_right"] = bool(said and said.step == fault.step)
        row["tensor_right"] = bool(said) and (list(hit) == [fault.tensor] or not fault.tensor)
        if fault.examples:
            both = set(fault.examples) & set(row["rows"])
            row["examples_right"] = (
                len(both) >= 0.9 * len(row["rows"]) > 0 and len(both) >= len(fault.examples) / 2
            )
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    head = ["fault", *plant.NETWORKS, "all", "kind", "step", "tensor", "examples", "event gone"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    some = [r for r in rows if r["fault"] != QUIET]
    for name in [*plant.FAULTS, "all"]:
        own = [r for r in some if name in (r["fault"], "all")]
        cells = [name]
        cells += [_share([_right(r) for r in own if r["network"] == n]) for n in plant.NETWORKS]
        cells.append(_share([_right(r) for r in own]))
        for key in ("kind_right", "step_right", "tensor_right", "examples_right"):
            cells.append(_share([r[key] for r in own if key in r]))
        cells.append(_share([r["gone"] for r in own if r["gone"] is not None]))
        lines.append(f"| {' | '.join(cells)} |")
    quiet = [r for r in rows if r["fault"] == QUIET]
    hidden = sum(r["invisible"] for r in quiet)
    shown = sum(r["visible"] for r in quiet)
    lines += ["", f"{len(quiet)} runs without a fault: {hidden} events that the loss does not "
              f"show, {shown} that it does."]  # fmt: skip
    missed = [r for r in some if not _right(r)]
    lines += ["", f"Misses ({len(missed)}):", ""]
    for r in missed:
        true, tensor = r["true"], r["true"][2]
        said = f"{r['kind'] or 'cannot say'} at step {r['step']}" if r["event"] else "no event"
        lines.append(
            f"- {r['fault']}, {r['network']}, seed {r['seed']}: at step {true[1]}"
            f"{f' in {tensor}' if tensor else ''}; said: {said}"
            f"{' in ' + r['tensors'][0] if r['tensors'] else ''}"
        )
    return "\n".join(lines) + "\n"


def _right(row: dict[str, Any]) -> bool:
    return row["kind_right"] and row["step_right"] and row["tensor_right"]


def _share(found: list[bool]) -> str:
    return f"{sum(found)} of {len(found)}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
