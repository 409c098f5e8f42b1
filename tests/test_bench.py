"""bin/bench: its processes, its figures, its command line. Nothing here asserts a time."""

import copy
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bench import __main__, chart, common, parts, tables, workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = [sys.executable, "-m", "bench"]
TASK = {"rule": "sgd", "sizes": [4, 3, 2], "batch": 2, "chunk": 5}
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder with data, and processes that find the contestant in tests/on_fake.py."""
    images, labels = np.zeros((9, 4), np.uint8), np.zeros(9, np.int32)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    plain = workers.environment
    fakes = {"PYTHONPATH": str(ROOT / "tests")}
    monkeypatch.setattr(workers, "environment", lambda name: plain(name) | fakes)
    return str(tmp_path)


@pytest.fixture
def worker(scratch):
    one = workers.Worker("", "on_fake", scratch)
    yield one
    one.close()


def state(process):
    """As Linux has it: T for stopped."""
    return pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_proc
def test_a_contestant_is_made_runs_and_goes(worker):
    made = worker.ask(do="make", name="runs", seconds=0.01, **TASK)
    assert made == {"note": "a note", "loss": 2.0, "checked": 5}
    turn = worker.ask(do="turn", name="runs")
    assert turn["seconds"] >= 0.001 and turn["bytes"] == 10
    deadline = time.monotonic() + 120
    while state(worker._process) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(worker._process) == "T"
    gone = worker.ask(do="drop", name="runs")
    assert gone["about"] == {"numpy": np.__version__, "fake": "1"} and gone["peak_mb"] > 1


def test_a_request_that_fails_gives_the_reason(worker):
    for _ in range(2):  # the process lives on
        with pytest.raises(workers.Failed, match="no such thing"):
            worker.ask(do="make", name="refuses", seconds=0.01, **TASK)
    for _ in range(2):
        with pytest.raises(workers.Failed, match="ended with status 1: out of breath"):
            worker.ask(do="make", name="dies", seconds=0.01, **TASK)


def test_a_contestant_that_hangs_is_killed(worker):
    with pytest.raises(workers.Failed, match="no answer within 1 seconds"):
        worker.ask(1, do="make", name="hangs", seconds=0.01, **TASK)
    worker.close()
    assert worker._process.returncode == -signal.SIGKILL


def test_in_turns_a_failed_contestant_has_its_reason_and_the_others_their_times(scratch):
    bench = parts.Bench(scratch, ["sgd"], [], quick=True)
    names = ["ours, no record", "refuses", "another"]
    with parts.processes() as processes:
        contestants = [parts.Contestant(name, "on_fake") for name in names]
        rows = parts.in_turns(bench, processes, "sgd", contestants, 16, sizes=[4, 2])
    assert [row["name"] for row in rows] == names
    assert ["error" in row for row in rows] == [False, True, False]
    assert all(len(row["ms"]) == 2 and row["loss"] == row["loss_ours"] for row in rows[::2])
    assert all(worker._process.returncode is not None for worker in processes.values())


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "FOLDER", tmp_path)
    monkeypatch.setattr(workers, "ENVIRONMENTS", tmp_path / "environments")
    workers._install.cache_clear()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "jax.txt").write_text("nothing @ file:///nowhere/nothing.whl\n")
    bench = parts.Bench(str(tmp_path), ["sgd"], ["jax"], quick=True)
    jax = [c for c in parts.PEERS if c.peer == "jax"]
    (row,) = parts.in_turns(bench, {}, "sgd", jax, 2)
    workers._install.cache_clear()
    assert row["error"].startswith("cannot be installed: ERROR")
    assert row["error"] in tables.to_markdown(results_of({"peers": {"rows": [row]}}))


def task_of(examples):
    images, labels = np.zeros((examples, 4), np.uint8), np.zeros(examples, np.int32)
    return common.Task("", "sgd", [4, 2], 4, 3, "", images, labels)


def test_all_contestants_get_the_same_batches_of_all_examples():
    one, other = task_of(10).batches(), task_of(10).batches()
    taken = np.concatenate([one(20), one(30)])
    assert taken.shape == (50, 4) and set(taken.ravel()) == set(range(10))
    assert np.array_equal(taken, other(50))
    assert [len(part) for part in task_of(10).chunks(taken[:7])] == [3, 3, 1]


def test_the_fastest_form_is_chosen():
    def form(seconds):
        return lambda: common.Runner(lambda indices: time.sleep(seconds * len(indices)))

    made = common.best(task_of(9), {"slow": form(0.01), "fast": form(0.0)})
    assert made.note.startswith("fast: ") and "slow" in made.note


def results_of(found):
    machine = {"cpu": "a", "cores": 2, "memory_gb": 1, "system": "b", "load": 0.0}
    common = {"date": "2000-01-01", "machine": machine, "quick": False, "rules": ["sgd"]}
    return {**common, "parts": found}


def row(name, *ms, size=0.0):
    figures = {"loss": 1.0, "loss_ours": 1.0, "checked": 5, "bytes": size, "peak_mb": 1.0}
    return {"rule": "sgd", "name": name, "ms": ms, "note": "", "about": {"fake": "1"}, **figures}


SOME = results_of(
    {
        "record": {
            "rows": [
                row("ours, no record", 1.0, 2.0, 4.0),
                row("ours, default record", 1.05, 2.1, 8.0, size=5.0),
                row("ours, no strategy", 1.0, 1.0, 4.0),
            ]
        },
        "peers": {
            "rows": [
                row("ours, no record", 1.0, 1.0),
                row("ours, default record", 1.0, 1.0, size=5.0),
                row("JAX, optax", 0.5, 0.5),
                row("Keras fit", 2.0, 2.0),
                row("notebook's way, histograms", 50.0, 50.0, size=12.0),
                {"rule": "sgd", "name": "PyTorch, eager", "ms": [], "error": "a | b"},
            ]
        },
        "grid": {"seconds": 1.5, "steps": 9},
        "sweeps": {
            "rule": "sgd",
            "points": [
                {"axis": "width", "value": 64, "ms": {"no record": [2.0], "default record": [3.0]}}
            ],
        },
    }
)


def test_bars_are_ratios_turn_by_turn():
    found = {what: (most, measured) for what, most, measured in tables.bars(SOME)}
    assert found["default record / no record"] == (1.10, {"sgd": pytest.approx(1.05)})
    assert found["no record / fastest peer without record"][1] == {"sgd, JAX, optax": 2.0}
    assert found["default record / notebook's way with histograms"][1] == {"sgd": 0.02}
    assert found["no record / floor"][1] == {}


def test_the_tables_hold_what_was_measured_and_what_was_not():
    text = tables.to_markdown(SOME)
    for line in (
        "| ours, default record | 2.100 | 1.575..5.050 | 1.05 | 1.05..1.52 | 5 | 1 | 1.0 (5 steps)",
        "| default record / no record | 1.10 | 1.050 (sgd) | met |",
        "without record | 1.00 | 2.000 (sgd, JAX, optax) | **not met** |",
        "| no record / floor | 1.30 | - | not measured |",
        "| not measured: a / b |",
        "| width 64 | 2.00 | 3.00 | 1.50 | 1.50..1.50 |",
        "default record, 9 steps: 1.5 s",
    ):
        assert line in text
    assert "not quiet" not in text and "**ours" not in text
    other = copy.deepcopy(SOME)
    other["machine"]["load"] = 0.6
    other["parts"]["peers"]["rows"][2]["loss"] = 1.5
    text = tables.to_markdown(other)
    assert "not quiet" in text and "1.5 (5 steps), **ours 1.0**" in text


def test_the_chart_and_the_readme(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    results, readme = tmp_path / "results.json", tmp_path / "README.md"
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--chart"])
    results.write_text(json.dumps(SOME))
    readme.write_text(f"before\n{chart.BEGIN}\nold\n{chart.END}\nafter\n")
    assert __main__.main() == 0
    chart.fill(readme, SOME)  # once more
    assert (tmp_path / "docs" / "bench.svg").read_text().rstrip().endswith("</svg>")
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert text.count("| bar |") == 1
    for text in ("text\n", f"a\n{chart.BEGIN}\nb\n", f"a\n{chart.END}\nb\n"):
        readme.write_text(text)
        with pytest.raises(workers.Failed):
            chart.fill(readme, SOME)
        assert readme.read_text() == text
    results.write_text(json.dumps(results_of({"grid": {"seconds": 1.0, "steps": 9}})))
    capsys.readouterr()
    assert __main__.main() == 1 and capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Parts that measure nothing, in a folder of their own."""
    monkeypatch.setattr(__main__, "FOLDER", tmp_path)
    monkeypatch.setattr(__main__, "_save_data", lambda path: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for part in parts.PARTS:
        monkeypatch.setitem(parts.PARTS, part, lambda _: {"rows": []})
    return tmp_path


@pytest.mark.parametrize(
    "flag", ["", "--rules=sgd", "--quick", "--peers=none", "--parts=grid", "--out"]
)
def test_only_a_run_without_a_flag_is_the_one_to_keep(flag, fakes, monkeypatch):
    out = fakes / "mine.json"
    flags = [f"--out={out}" if flag == "--out" else flag] if flag else []
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    assert __main__.main() == 0
    assert (fakes / "results.json").exists() == (not flag)
    assert out.exists() == (flag == "--out") != (fakes / "last.json").exists()
    assert not list(fakes.glob("*.tmp"))


def test_a_stopped_run_keeps_the_parts_that_are_done_and_that_failed(fakes, monkeypatch, capsys):
    def fails(_):
        raise StopIteration("a\nb")

    def is_stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.PARTS, "peers", fails)
    monkeypatch.setitem(parts.PARTS, "sweeps", is_stopped)
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(KeyboardInterrupt):
        __main__.main()
    results = json.loads((fakes / "last.json").read_text())
    assert list(results["parts"]) == ["record", "peers", "grid"]
    assert "StopIteration" in results["parts"]["peers"]["error"]
    assert not (fakes / "results.json").exists()
    assert "record, peers, grid saved as" in capsys.readouterr().err


def test_a_grid_that_fails_is_a_reason(tmp_path, monkeypatch):
    train = tmp_path / "bin" / "train"
    train.parent.mkdir()
    train.write_text("#!/bin/sh\necho no room\nexit 3\n")
    train.chmod(0o755)
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    with pytest.raises(workers.Failed, match="no room"):
        parts.grid(parts.Bench(str(tmp_path), ["sgd"], [], quick=True))


@pytest.mark.parametrize(
    "flag",
    [
        "--parts=all",
        "--parts=none",
        "--peers=numpy",
        "--out=missing/dir/x.json",
        "--out=/dev/null",
        "--part=record",
    ],
)
def test_a_wrong_flag_is_one_line(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", flag])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    assert flag.split("=")[0] in err


@pytest.mark.slow
def test_quick(tmp_path):
    out = tmp_path / "results.json"
    command = [*BENCH, "--quick", "--peers=none", "--rules=sgd", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert list(results["parts"]) == list(parts.PARTS)
    for part in ("record", "peers"):
        rows = results["parts"][part]["rows"]
        assert not [row["error"] for row in rows if "error" in row]
        assert all(len(row["ms"]) == 2 for row in rows)
        ours = [row for row in rows if row["name"].startswith("ours")]
        assert all(row["loss"] == pytest.approx(row["loss_ours"], rel=1e-3) for row in ours)
    points = results["parts"]["sweeps"]["points"]
    assert {point["axis"] for point in points} == {"width", "batch", "layers"}
    assert "| default record / no record | 1.10 |" in done.stdout


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_no_process(tmp_path, number):
    # What runs in the background is told to ignore SIGINT, and would tell its children so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*BENCH, "--parts=record", "--rules=sgd"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    for line in process.stderr:
        if "is ready" in line:
            break
    assert in_folder(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    deadline = time.monotonic() + 120
    while (left := in_folder(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def in_folder(folder):
    """All processes that work in the folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(path).startswith(f"{folder}/"):
                found.append(path)
        except OSError:
            continue
    return found
