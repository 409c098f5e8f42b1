"""What is measured: the contestants, in turns, and what is measured in other ways."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from bench import launch, page
from bench.common import PERCEPTRON
from bench.workers import ROOT, Failed, Worker, log, run

SIZES, BATCH, CHUNK = [784, 128, 256, 10], 256, 100
WIDTHS, BATCHES, LAYERS = (64, 128, 256, 512, 1024, 2048), (64, 256, 1024, 4096), (1, 2, 4, 8)
NETWORKS = ["convnet", "transformer"]
# Figures of the part `sizes`, beside those of launch.py. The tensors have 1,300 units together.
BYTES = "bytes on disk per histogram"
RECORDING, COMPILING = "record of a step, ms", "first call, compiling, s"
FEW_AND_MANY, _UNITS = (10, 200), 1300


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table, in a process of its own.

    Attributes:
      name: In the table, and by which the module knows it.
      peer: By which --peers knows it; empty for ours and the floor.
    """

    name: str
    module: str = "on_everystep"
    peer: str = ""


NO_RECORD, DEFAULT_RECORD = Contestant("ours, no record"), Contestant("ours, default record")
SCALARS, HISTOGRAMS = Contestant("ours, scalars"), Contestant("ours, histograms")
NOTEBOOK = Contestant("notebook's way, histograms", "on_tensorflow", "notebook")
FLOOR = Contestant("floor: eight products", "on_tensorflow")
OURS = [
    NO_RECORD,
    Contestant("ours, no strategy"),
    SCALARS,
    DEFAULT_RECORD,
    Contestant("ours, everything watched"),
    Contestant("ours, 2 replicas"),
    Contestant("ours, 2 replicas, default record"),
    FLOOR,
]
PEERS = [
    NO_RECORD,
    DEFAULT_RECORD,
    FLOOR,
    Contestant("notebook's way", "on_tensorflow", "notebook"),
    NOTEBOOK,
    Contestant("Keras fit", "on_tensorflow", "keras"),
    Contestant("Keras fit, TensorBoard, epochs of one step", "on_tensorflow", "keras"),
    Contestant("PyTorch, eager", "on_torch", "torch"),
    Contestant("PyTorch, torch.compile", "on_torch", "torch"),
    Contestant("PyTorch, add_histogram", "on_torch", "torch"),
    Contestant("PyTorch, wandb.watch", "on_torch", "torch"),
    Contestant("JAX, optax", "on_jax", "jax"),
]
PEER_NAMES = list(dict.fromkeys(c.peer for c in PEERS if c.peer))
# Those that record nothing, of which the fastest is the one to beat.
BARE = ["notebook's way", "Keras fit", "PyTorch, eager", "PyTorch, torch.compile", "JAX, optax"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every part needs.

    Attributes:
      scratch: A folder, with the images and labels in data.npz.
      quick: Too few turns, too short to compare.
    """

    scratch: str
    rules: Sequence[str]
    peers: Sequence[str]
    quick: bool


@contextlib.contextmanager
def processes() -> Iterator[dict[str, Worker]]:
    """By contestant; they end with the block."""
    workers: dict[str, Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


@contextlib.contextmanager
def _failures(row: dict[str, Any]) -> Iterator[None]:
    """A failure goes into the row."""
    try:
        yield
    except Failed as reason:
        row.setdefault("error", str(reason))
        log(f"{row['name']}, {row['network']}, {row['rule']}: {reason}")


def in_turns(
    bench: Bench,
    workers: dict[str, Worker],
    rule: str,
    contestants: Sequence[Contestant],
    turns: int,
    seconds: float = 0.4,
    gpu: bool = False,
    **task: Any,
) -> list[dict[str, Any]]:
    """The contestants' rows: milliseconds per step of every turn, which takes about `seconds`.

    `task` holds what differs from the recipe's: network, sizes, batch, chunk. Processes that are
    not yet in `workers` are started.
    """
    chunk, seconds = (20, 0.02) if bench.quick else (CHUNK, seconds)
    task = {"network": PERCEPTRON, "sizes": SIZES, "batch": BATCH, "chunk": chunk} | task
    task["rule"], about = rule, {"rule": rule, "network": task["network"]}
    rows: list[dict[str, Any]] = [{**about, "name": c.name, "ms": []} for c in contestants]
    for contestant, row in zip(contestants, rows, strict=True):
        begun, name = time.monotonic(), contestant.name
        with _failures(row):
            if name not in workers:
                env = contestant.peer if contestant.module != "on_tensorflow" else ""
                workers[name] = Worker(env, contestant.module, bench.scratch, gpu)
            row |= workers[name].ask(1800, do="make", name=name, seconds=seconds, **task)
            log(f"{name}, {row['network']}, {rule}: is ready ({time.monotonic() - begun:.0f} s)")
    ready = [row for row in rows if "error" not in row]
    for turn in range(2 if bench.quick else turns):
        for row in ready[:: -1 if turn % 2 else 1]:
            if "error" in row:
                continue
            with _failures(row):
                answer = workers[row["name"]].ask(do="turn", name=row["name"])
                row["ms"].append(1000 * answer["seconds"])
                row["bytes"] = answer["bytes"]
    for row in ready:
        with _failures(row):
            row |= workers[row["name"]].ask(do="drop", name=row["name"])
            log(f"{row['name']}, {row['network']}, {rule}: {median(row['ms'] or [0]):.3f} ms")
    for row in rows:  # the loss must be ours
        row["loss_ours"] = next((r["loss"] for r in ready if r["name"] == NO_RECORD.name), 0.0)
    return rows


def _rows(bench: Bench, contestants: Sequence[Contestant], turns: int) -> dict[str, Any]:
    rows = []
    with processes() as workers:
        for rule in bench.rules:
            rows += in_turns(bench, workers, rule, contestants, turns)
    return {"rows": rows}


def record(bench: Bench) -> dict[str, Any]:
    """Ours, with and without record, and the floor."""
    return _rows(bench, OURS, 16)


def peers(bench: Bench) -> dict[str, Any]:
    """Ours beside what others do."""
    return _rows(bench, [c for c in PEERS if not c.peer or c.peer in bench.peers], 8)


def networks(bench: Bench) -> dict[str, Any]:
    """Ours beside others on other networks, with adam."""
    chunk = 2 if bench.quick else 10
    return _networks(bench, NETWORKS, [*PEER_NAMES[1:]], seconds=1.0, chunk=chunk)


def gpu(bench: Bench) -> dict[str, Any]:
    """Ours beside others on one GPU, with adam."""
    return _networks(bench, [PERCEPTRON, *NETWORKS], ["torch", "jax"], gpu=True)


def _networks(
    bench: Bench, networks: Sequence[str], peers: Sequence[str], **options: Any
) -> dict[str, Any]:
    bare = [c for c in PEERS if c.name in BARE and c.peer in peers and c.peer in bench.peers]
    rows, contestants = [], [NO_RECORD, DEFAULT_RECORD, *bare]
    for network in networks:
        with processes() as workers:
            rows += in_turns(bench, workers, "adam", contestants, 8, network=network, **options)
    return {"rows": rows}


def sizes(bench: Bench) -> dict[str, Any]:
    """What is there before the first step, on disk, in memory, and of many small tensors.

    Raises:
      Failed: a contestant, or bin/train.
    """
    figures = launch.measure(bench.scratch, bench.quick)
    with processes() as workers:
        rows = in_turns(bench, workers, "adam", [SCALARS, HISTOGRAMS, NOTEBOOK], 2)
    scalars, ours, theirs = (row["bytes"] for row in _all(rows))
    figures[BYTES] = (ours - scalars) / 12
    figures[f"tf.summary.histogram: {BYTES}"] = theirs / 12
    for tensors in FEW_AND_MANY:
        heads = [784, *[_UNITS // (tensors // 2)] * (tensors // 2)]
        with processes() as workers:
            pair = [NO_RECORD, DEFAULT_RECORD]
            rows = in_turns(bench, workers, "adam", pair, 8, network="heads", sizes=heads, chunk=10)
        none, some = _all(rows)
        figures[f"{tensors} tensors: {RECORDING}"] = median(
            above - below for above, below in zip(some["ms"], none["ms"], strict=True)
        )
        figures[f"{tensors} tensors: {COMPILING}"] = some["first_s"]
    return {"figures": figures}


def _all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, if no contestant has failed.

    Raises:
      Failed: the reason of one that has.
    """
    for error in (row["error"] for row in rows if "error" in row):
        raise Failed(error)
    return rows


def sweeps(bench: Bench) -> dict[str, Any]:
    """The default record against no record, by hidden width, batch, and number of layers."""
    points: list[tuple[str, int, list[int], int]] = [
        *(("width", width, [784, width, width, 10], BATCH) for width in WIDTHS),
        *(("batch", batch, SIZES, batch) for batch in BATCHES),
        *(("layers", layers, [784, *[128] * layers, 10], BATCH) for layers in LAYERS),
    ]
    rule, found = bench.rules[0], []
    with processes() as workers:
        for axis, value, sizes, batch in points[:: 3 if bench.quick else 1]:
            products = sum(a * b for a, b in itertools.pairwise(sizes))
            chunk = int(np.clip(4e10 / (6 * products * batch), 2, CHUNK))  # a second or two
            task = {"sizes": sizes, "batch": batch, "chunk": chunk}
            pair = in_turns(bench, workers, rule, [NO_RECORD, DEFAULT_RECORD], 5, **task)
            ms = {row["name"].removeprefix("ours, "): row["ms"] for row in _all(pair)}
            found.append({"axis": axis, "value": value, "ms": ms})
    return {"rule": rule, "points": found}


def grid(bench: Bench) -> dict[str, Any]:
    """Seconds of the README's grid of nine; a quick one takes three of them.

    Raises:
      Failed: bin/train ends with another status than 0.
    """
    trials, steps = (3, 100) if bench.quick else (9, 3000)
    flags = (
        f"--training_steps={steps}",
        f"--logdir={bench.scratch}/grid",
        f"--shard=0/{9 // trials}",
    )
    seconds, _ = run(ROOT / "bin" / "train", "--grid=readme", *flags)
    return {"seconds": seconds, "steps": trials * steps}


def view(bench: Bench) -> dict[str, Any]:
    """The pages of bin/view."""
    return {"pages": page.measure(bench.scratch, bench.quick)}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "record": record,
    "peers": peers,
    "networks": networks,
    "gpu": gpu,
    "grid": grid,
    "sweeps": sweeps,
    "sizes": sizes,
    "view": view,
}
