"""What is measured: the contestants, in turns, and what is measured in other ways."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.workers import OURS, ROOT, Failed, Worker, environment, say

SIZES, BATCH, CHUNK = [784, 128, 256, 10], 256, 100
WIDTHS, BATCHES, LAYERS = (64, 128, 256, 512, 1024, 2048), (64, 256, 1024, 4096), (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table.

    peer: the environment of a peer, by which --peers knows it; empty for ours and the floor.
    process: contestants of one name share a process.
    check: the first steps whose mean loss is compared with ours.
    """

    name: str
    module: str
    variant: str
    peer: str = ""
    process: str = ""
    check: int = CHUNK


def _ours(variant: str, process: str = "") -> Contestant:
    return Contestant(f"ours, {variant}", "on_everystep", variant, process=process)


FLOOR = Contestant("floor: eight products", "on_tensorflow", "floor")
RECORD = [
    *(_ours(variant, "one") for variant in ("no record", "no strategy", "scalars")),
    *(_ours(variant, "one") for variant in ("default record", "everything watched")),
    *(_ours(variant, "two") for variant in ("2 replicas", "2 replicas, default record")),
    FLOOR,
]
PEERS = [
    _ours("no record"),
    _ours("default record"),
    FLOOR,
    *(
        Contestant(name, module, variant, peer, check=check)
        for name, module, variant, peer, check in [
            ("notebook's way", "on_tensorflow", "notebook", "notebook", CHUNK),
            ("notebook's way, histograms", "on_tensorflow", "notebook, histograms", "notebook", 20),
            ("Keras fit", "on_tensorflow", "Keras fit", "keras", CHUNK),
            (
                "Keras fit, TensorBoard, histograms once an epoch",
                *("on_tensorflow", "Keras fit, TensorBoard", "keras", 20),
            ),
            (
                "Keras fit, TensorBoard, epochs of one step",
                *("on_tensorflow", "Keras fit, TensorBoard each step", "keras", 20),
            ),
            ("PyTorch, eager", "on_torch", "eager", "torch", CHUNK),
            ("PyTorch, torch.compile", "on_torch", "compile", "torch", CHUNK),
            ("PyTorch, add_histogram", "on_torch", "add_histogram", "torch", 20),
            ("PyTorch, wandb.watch", "on_torch", "wandb.watch", "torch", 20),
            ("JAX, optax", "on_jax", "scan", "jax", CHUNK),
            ("PyTorch, Cockpit", "on_cockpit", "cockpit", "cockpit", 5),
        ]
    ),
]
PEER_NAMES = list(dict.fromkeys(c.peer for c in PEERS if c.peer))
# Those that record nothing, of which the fastest is the one to beat.
BARE = [
    "notebook's way",
    "Keras fit",
    "PyTorch, eager",
    "PyTorch, torch.compile",
    "JAX, optax",
]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every part needs.

    turns: of each contestant; a turn takes about `seconds`.
    """

    data: str
    scratch: str
    rules: Sequence[str]
    peers: Sequence[str]
    turns: int
    seconds: float
    quick: bool


def in_turns(bench: Bench, part: str, contestants: Sequence[Contestant], gpu: bool = False) -> list:
    """The contestants' rows: milliseconds a step of every turn, by update rule."""
    rows: list[dict[str, Any]] = []
    workers: dict[str, Worker] = {}
    failed: dict[str, str] = {}
    try:
        for rule in bench.rules:
            new = [_row(bench, part, rule, c, workers, failed, gpu) for c in contestants]
            live = [(c, row) for c, row in zip(contestants, new, strict=True) if "error" not in row]
            for turn in range(bench.turns):
                for contestant, row in live[:: -1 if turn % 2 else 1]:
                    _turn(workers[_key(contestant)], contestant, row)
            for contestant, row in live:
                worker = workers[_key(contestant)]
                try:
                    row |= worker.ask(do="about")
                    worker.ask(do="drop", name=f"{contestant.name} {rule}")
                except Failed as reason:
                    row.setdefault("error", str(reason))
            _compare(new)
            rows += new
    finally:
        for worker in workers.values():
            worker.close()
    return rows


def _key(contestant: Contestant) -> str:
    return contestant.process or contestant.name


def _row(
    bench: Bench,
    part: str,
    rule: str,
    contestant: Contestant,
    workers: dict[str, Worker],
    failed: dict[str, str],
    gpu: bool,
) -> dict[str, Any]:
    """A row to be filled: its contestant is made, checked and warm, or it says why not."""
    key = _key(contestant)
    row: dict[str, Any] = {"part": part, "rule": rule, "name": contestant.name, "ms": []}
    begun = time.monotonic()
    try:
        if key in failed:
            raise Failed(failed[key])
        if key not in workers:
            env = contestant.peer if contestant.module != "on_tensorflow" else OURS
            folder = os.path.join(bench.scratch, f"{part}-{key}")
            try:
                workers[key] = Worker(env or OURS, contestant.module, bench.data, folder, gpu)
            except Failed as reason:
                failed[key] = str(reason)
                raise
        made = workers[key].ask(
            600,
            do="make",
            name=f"{contestant.name} {rule}",
            variant=contestant.variant,
            rule=rule,
            sizes=SIZES,
            batch=BATCH,
            chunk=20 if bench.quick else CHUNK,
            check=min(contestant.check, 20) if bench.quick else contestant.check,
            seconds=bench.seconds,
        )
        row |= made
        say(f"{part}, {rule}: {contestant.name} is ready ({time.monotonic() - begun:.0f} s)")
    except Failed as reason:
        row["error"] = str(reason)
        say(f"{part}, {rule}: {contestant.name}: {reason}")
    return row


def _turn(worker: Worker, contestant: Contestant, row: dict[str, Any]) -> None:
    if "error" in row:
        return
    try:
        answer = worker.ask(do="go", name=f"{contestant.name} {row['rule']}")
        row["ms"].append(1000 * answer["seconds"])
        row["bytes"] = answer["bytes"]
    except Failed as reason:
        row["error"] = str(reason)
        say(f"{contestant.name}: {reason}")


def _compare(rows: list[dict[str, Any]]) -> None:
    """Puts beside each row's mean loss of its first steps what ours was by then."""
    ours: list[float] = []
    for row in rows:
        if row["name"] == "ours, no record":
            ours = row.get("means", [])
    for row in rows:
        means = row.pop("means", [])
        row["checked"] = len(means)
        row["loss"] = means[-1] if means else 0.0
        row["loss_ours"] = ours[len(means) - 1] if 0 < len(means) <= len(ours) else 0.0


def record(bench: Bench) -> dict[str, Any]:
    """Ours, with and without record, and the floor."""
    return {"rows": in_turns(bench, "record", RECORD)}


def peers(bench: Bench) -> dict[str, Any]:
    """Ours beside what others do."""
    chosen = [c for c in PEERS if not c.peer or c.peer in bench.peers]
    few = dataclasses.replace(bench, turns=max(2, bench.turns // 2))
    return {"rows": in_turns(few, "peers", chosen)}


def gpu(bench: Bench) -> dict[str, Any]:
    """The same on a GPU, where there is one."""
    folder = os.path.join(bench.scratch, "gpu")
    try:
        worker = Worker(OURS, "on_everystep", bench.data, folder, gpu=True)
        try:
            device = worker.ask(do="about")["about"]["device"]
        finally:
            worker.close()
    except Failed as reason:
        return {"gpu": f"TensorFlow does not start with the GPU: {reason}"}
    if "GPU" not in device:
        return {"gpu": "no GPU here that TensorFlow sees: nothing was measured on one"}
    alone = [dataclasses.replace(c, process="") for c in RECORD if "2 replicas" not in c.name]
    others = [c for c in PEERS if c.peer in bench.peers and c.peer != "cockpit"]
    return {"gpu": device, "rows": in_turns(bench, "gpu", alone + others, gpu=True)}


def startup(bench: Bench) -> dict[str, Any]:
    """Seconds from launch to the first step's evaluation, beside `import tensorflow`."""
    results: dict[str, Any] = {"import": [], "first_step": [], "startup_seconds": [], "peak_mb": []}
    own = _launching()
    for turn in range(-1, 2 if bench.quick else 7):  # the first one warms the file cache
        folder = os.path.join(bench.scratch, f"startup{turn}")
        begun = time.monotonic()
        command = [sys.executable, "-c", "import tensorflow"]
        status = subprocess.run(command, env=own, stderr=subprocess.DEVNULL).returncode
        if status:
            raise Failed(f"import tensorflow: ended with status {status}")
        imported = time.monotonic() - begun
        first, _, peak = _launch(["--training_steps=1", f"--logdir={folder}"], own)
        if turn >= 0:
            told = next(pathlib.Path(folder).rglob("result.json"), None)
            if told is None:
                raise Failed("bin/train left no result.json")
            results["import"].append(imported)
            results["first_step"].append(first)
            results["startup_seconds"].append(json.loads(told.read_text())["startup_seconds"])
            results["peak_mb"].append(peak)
    return results


def grid(bench: Bench) -> dict[str, Any]:
    """Seconds of the README's grid of nine."""
    arguments = ["--grid=readme", f"--logdir={os.path.join(bench.scratch, 'grid')}"]
    arguments += ["--training_steps=100"] if bench.quick else []
    _, seconds, _ = _launch(arguments, _launching())
    return {"seconds": seconds, "steps": 9 * (100 if bench.quick else 3000)}


def _launching() -> dict[str, str]:
    """The user's own variables, and the environment that this program runs in."""
    own = environment(OURS, gpu=False) | {"LAB_PYTHON": sys.executable}
    return {k: v for k, v in own.items() if k != "TF_CPP_MIN_LOG_LEVEL"}


def _launch(arguments: list[str], env: dict[str, str]) -> tuple[float, float, float]:
    """bin/train: seconds to its line on the first step, seconds in all, peak memory in MB.

    Raises:
      Failed: it ends with another status than 0.
    """
    begun = time.monotonic()
    first = 0.0
    command = [str(ROOT / "bin" / "train"), *arguments]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if not first and line.startswith("step "):
                first = time.monotonic() - begun
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise Failed(f"bin/train {' '.join(arguments)}: {lines[-1] if lines else 'no word'}")
    seconds = time.monotonic() - begun
    return first or seconds, seconds, used.ru_maxrss / 1024


def sweeps(bench: Bench) -> dict[str, Any]:
    """The default record against no record, by hidden width, batch, and number of layers."""
    points: list[tuple[str, int, list[int], int]] = [
        *(("width", width, [784, width, width, 10], BATCH) for width in WIDTHS),
        *(("batch", batch, SIZES, batch) for batch in BATCHES),
        *(("layers", layers, [784, *[128] * layers, 10], BATCH) for layers in LAYERS),
    ]
    folder = os.path.join(bench.scratch, "sweeps")
    worker = Worker(OURS, "on_everystep", bench.data, folder)
    found = []
    try:
        for axis, value, sizes, batch in points[:: 3 if bench.quick else 1]:
            ms: dict[str, list[float]] = {"no record": [], "default record": []}
            macs = sum(a * b for a, b in itertools.pairwise(sizes))
            chunk = int(np.clip(5e9 / (6 * macs * batch) * 20 * bench.seconds, 2, CHUNK))
            ask = functools.partial(worker.ask, 300)
            for variant in ms:
                ask(
                    do="make",
                    name=variant,
                    variant=variant,
                    rule=bench.rules[0],
                    sizes=sizes,
                    batch=batch,
                    chunk=chunk,
                    check=chunk,
                    seconds=bench.seconds / 2,
                )
            for _ in range(max(2, bench.turns // 3)):
                for variant, times in ms.items():
                    times.append(1000 * ask(do="go", name=variant)["seconds"])
            for variant in ms:
                ask(do="drop", name=variant)
            found.append({"axis": axis, "value": value, "ms": ms})
            say(f"sweeps: {axis} {value}")
    finally:
        worker.close()
    return {"rule": bench.rules[0], "points": found}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "record": record,
    "peers": peers,
    "startup": startup,
    "grid": grid,
    "sweeps": sweeps,
    "gpu": gpu,
}
