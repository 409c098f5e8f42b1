"""bin/bench: its processes, its figures, its command line. Nothing here asserts a time."""

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
FAKE = """
import os, sys, time
import numpy as np
from common import Made

def make(task):
    print("frameworks print what they like")
    if task.variant == "refuses":
        raise ValueError("in user code:\\n  here\\n  no such thing")
    def run(indices):
        if task.variant == "dies":
            sys.exit("out of breath")
        if task.variant == "hangs":
            time.sleep(600)
        time.sleep(0.001 * len(indices))
        with open(os.path.join(task.folder, "events"), "ab") as file:
            file.write(b"x" * 10 * len(indices))
        return np.arange(len(indices), dtype=np.float32)
    return Made(run, chunk=task.chunk, note="a note")

def about():
    return {"fake": "1"}
"""
MAKE = {
    "do": "make",
    "name": "a",
    "rule": "sgd",
    "sizes": [4, 3, 2],
    "batch": 2,
    "chunk": 5,
    "check": 10,
    "seconds": 0.01,
}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A process of a contestant that is a fake."""
    (tmp_path / "on_fake.py").write_text(FAKE)
    np.savez(tmp_path / "data.npz", images=np.zeros((9, 4), np.uint8), labels=np.zeros(9, np.int32))
    plain = workers.environment
    monkeypatch.setattr(
        workers, "environment", lambda *a: plain(*a) | {"PYTHONPATH": str(tmp_path)}
    )
    one = workers.Worker(
        workers.OURS, "on_fake", str(tmp_path / "data.npz"), str(tmp_path / "folder")
    )
    yield one
    one.close()


def state(process):
    """As Linux has it: T for stopped."""
    return pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_contestant_is_made_runs_and_goes(worker):
    made = worker.ask(variant="runs", **MAKE)
    assert made["note"] == "a note" and made["steps"] % 5 == 0
    assert np.allclose(made["means"], np.arange(10) / 2)
    turn = worker.ask(do="go", name="a")
    assert turn["seconds"] >= 0.001 and turn["bytes"] == 10
    about = worker.ask(do="about")
    assert about["about"] == {"fake": "1"} and about["peak_mb"] > 1
    assert worker.ask(do="drop", name="a") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_stands_still_until_it_is_asked(worker):
    deadline = time.monotonic() + 10
    while state(worker._process) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(worker._process) == "T"


def test_one_that_refuses_says_why_and_lives(worker):
    with pytest.raises(workers.Failed, match="ValueError: no such thing"):
        worker.ask(variant="refuses", **MAKE)
    assert worker.ask(do="about")


def test_one_that_dies_leaves_its_last_word(worker):
    with pytest.raises(workers.Failed, match="ended with status 1: out of breath"):
        worker.ask(variant="dies", **MAKE)
    with pytest.raises(workers.Failed, match="ended with status 1"):
        worker.ask(do="about")


def test_one_that_hangs_is_given_up(worker):
    with pytest.raises(workers.Failed, match="no answer within 1 seconds"):
        worker.ask(1, variant="hangs", **MAKE)
    worker.close()
    assert worker._process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "FOLDER", tmp_path)
    monkeypatch.setattr(workers, "ENVIRONMENTS", tmp_path / "environments")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "jax.txt").write_text("nothing @ file:///nowhere/nothing.whl\n")
    bench = parts.Bench("", str(tmp_path / "scratch"), ["sgd"], ["jax"], 2, 0.01, True)
    jax = [c for c in parts.PEERS if c.peer == "jax"]
    (row,) = parts.in_turns(bench, "peers", jax)
    assert row["error"].startswith("cannot be installed: ERROR")
    text = tables.to_markdown(results_of({"peers": {"rows": [row]}}))
    assert "not measured: cannot be installed: ERROR" in text


def test_batches_are_epochs_of_every_example():
    batches = common.Batches(10, 4)
    taken = np.concatenate([batches.take(2), batches.take(3)]).ravel()
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    again = common.Batches(10, 4).take(5)
    assert np.array_equal(again.ravel(), taken)


def test_the_best_form_is_chosen_and_what_fails_left_out():
    task = common.Task("", "sgd", [4, 2], 2, 1, np.zeros((9, 4)), np.zeros(9), "")

    def form(seconds):
        return lambda: common.Made(lambda indices: time.sleep(seconds * len(indices)))

    def fails():
        raise ValueError("no")

    made = common.best(task, {"slow": form(0.01), "fast": form(0.0), "wrong": fails})
    assert made.note.startswith("fast: ") and "slow" in made.note
    with pytest.raises(ValueError, match="no"):
        common.best(task, {"wrong": fails})


def test_quartiles_and_ratios():
    values = np.random.default_rng(0).gamma(2.0, size=(2, 17))
    assert np.allclose(tables.quartiles(values[0]), np.quantile(values[0], [0.25, 0.5, 0.75]))
    assert np.allclose(tables.ratios(*values), values[0] / values[1])
    assert tables.ratios([1.0, 2.0], [2.0]) == [0.5]


def results_of(found):
    machine = {"cpu": "a", "cores": 2, "memory_gb": 1, "system": "b", "load": 0.0}
    return {
        "date": "2000-01-01",
        "machine": machine,
        "quick": False,
        "rules": ["sgd"],
        "parts": found,
    }


def row(part, name, *ms, size=0.0):
    return {
        "part": part,
        "rule": "sgd",
        "name": name,
        "ms": list(ms),
        "bytes": size,
        "note": "",
        "loss": 1.0,
        "loss_ours": 1.0,
        "checked": 5,
        "steps": 5,
        "peak_mb": 1.0,
        "about": {"fake": "1"},
    }


def some_results():
    record = [
        row("record", "ours, no record", 1.0, 2.0, 4.0),
        row("record", "ours, default record", 1.05, 2.1, 8.0, size=5.0),
        row("record", "ours, everything watched", 2.0, 3.0, size=9.5),
        row("record", "ours, no strategy", 1.0, 1.0, 4.0),
    ]
    peers = [
        row("peers", "ours, no record", 1.0, 1.0),
        row("peers", "ours, default record", 1.0, 1.0, size=5.0),
        row("peers", "JAX, optax", 0.5, 0.5),
        row("peers", "Keras fit", 2.0, 2.0),
        row("peers", "notebook's way, histograms", 50.0, 50.0, size=12.0),
        {"part": "peers", "rule": "sgd", "name": "PyTorch, eager", "ms": [], "error": "a | b"},
    ]
    start = {
        "import": [2.0, 2.0],
        "first_step": [3.0, 3.0],
        "startup_seconds": [2.0],
        "peak_mb": [1.0],
    }
    return results_of({"record": {"rows": record}, "peers": {"rows": peers}, "startup": start})


def test_bars_are_ratios_turn_by_turn():
    found = {what: (most, measured) for what, most, measured in tables.bars(some_results())}
    assert found["default record / no record"] == (1.10, {"sgd": pytest.approx(1.05)})
    assert found["no record / fastest peer without record"][1] == {"sgd, JAX, optax": 2.0}
    assert found["default record / notebook's way with histograms"][1] == {"sgd": 0.02}
    assert found["bytes of a histogram / tf.summary.histogram's"][1] == {"sgd": 0.5}
    assert found["launch to first step / import tensorflow"][1] == {"": 1.5}
    assert found["no record / floor"][1] == {}


def test_the_table_tells_everything():
    text = tables.to_markdown(some_results())
    assert "| default record / no record | 1.10 | 1.050 (sgd) | met |" in text
    assert "2.000 (sgd, JAX, optax) | **not met** |" in text
    assert "| no record / floor | 1.30 | - | not measured |" in text
    assert "not measured: a / b |" in text
    unlike = some_results()
    unlike["parts"]["peers"]["rows"][2]["loss"] = 1.5
    assert "1.5 (5 steps), **ours 1.0**" in tables.to_markdown(unlike)


def test_the_table_says_that_the_machine_was_not_quiet():
    results = some_results()
    assert "not quiet" not in tables.to_markdown(results)
    results["machine"]["load"] = 0.6
    assert "The machine was not quiet (load 0.6)" in tables.to_markdown(results)


def test_a_chart_of_nothing_and_a_readme_without_marks_are_refused(tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    out.write_text(json.dumps(results_of({"grid": {"seconds": 1.0, "steps": 9}})))
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--chart", f"--out={out}"])
    assert __main__.main() == 1
    err = capsys.readouterr().err
    assert "no figures of the part peers" in err and err.count("\n") == 1
    readme = tmp_path / "README.md"
    for text in ("text\n", f"a\n{chart.BEGIN}\nb\n", f"a\n{chart.END}\nb\n"):
        readme.write_text(text)
        with pytest.raises(workers.Failed, match="lacks the line"):
            chart.fill(readme, some_results())
        assert readme.read_text() == text


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Parts that measure nothing, in a folder of their own."""
    monkeypatch.setattr(__main__, "FOLDER", tmp_path)
    monkeypatch.setattr(__main__, "_save", lambda path: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for part in parts.PARTS:
        monkeypatch.setitem(parts.PARTS, part, lambda _: {"rows": []})
    return tmp_path


@pytest.mark.parametrize(
    "flag", ["", "--rules=sgd", "--turns=1", "--quick", "--peers=none", "--parts=grid", "--out"]
)
def test_only_a_run_without_a_flag_is_the_one_to_keep(flag, fakes, monkeypatch):
    out = fakes / "mine.json"
    flags = [f"--out={out}" if flag == "--out" else flag] if flag else []
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    assert __main__.main() == 0
    assert (fakes / "results.json").exists() == (not flag)
    assert out.exists() == (flag == "--out") != (fakes / "last.json").exists()
    assert not list(fakes.glob("*.tmp"))


def test_a_part_that_fails_is_reported_and_a_stopped_run_keeps_what_is_done(
    fakes, monkeypatch, capsys
):
    def fails(_):
        raise StopIteration("a\nb")

    def is_stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.PARTS, "startup", fails)
    monkeypatch.setitem(parts.PARTS, "sweeps", is_stopped)
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(KeyboardInterrupt):
        __main__.main()
    results = json.loads((fakes / "last.json").read_text())
    assert list(results["parts"]) == ["record", "peers", "startup", "grid"]
    assert "StopIteration" in results["parts"]["startup"]["error"]
    assert not (fakes / "results.json").exists()
    assert "stopped: record, peers, startup, grid saved as" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["false", "true"])
def test_a_launch_that_fails_is_a_reason(program, tmp_path, monkeypatch):
    bench = parts.Bench("", str(tmp_path), ["sgd"], [], 2, 0.01, True)
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(parts, "_launch", lambda *_: (1.0, 1.0, 1.0))
    with pytest.raises(workers.Failed, match=r"ended with status 1|left no result\.json"):
        parts.startup(bench)


def test_the_chart_and_the_readme(tmp_path):
    pytest.importorskip("matplotlib")
    chart.draw(some_results(), tmp_path / "bench.svg")
    assert (tmp_path / "bench.svg").read_text().rstrip().endswith("</svg>")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{chart.BEGIN}\nold\n{chart.END}\nafter\n")
    chart.fill(readme, some_results())
    chart.fill(readme, some_results())
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert text.count("| bar |") == 1


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--parts=all", "'all' is none of record, peers"),
        ("--peers=numpy", "'numpy' is none of notebook"),
        ("--turns=-1", "must be 1 or more"),
        ("--turns=0", "must be 1 or more"),
        ("--out=missing/dir/x.json", "cannot write into missing/dir"),
        ("--out=/dev/null", "is no file"),
        ("--turns=few", "invalid int value"),
        ("--part=record", "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_one_line(flag, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", flag])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and err.count("\n") == 1


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
        assert all(len(row["ms"]) >= 2 for row in rows)
        ours = [row for row in rows if row["name"].startswith("ours")]
        assert all(row["loss"] == pytest.approx(row["loss_ours"], rel=1e-3) for row in ours)
    assert {point["axis"] for point in results["parts"]["sweeps"]["points"]} == {
        *("width", "batch", "layers")
    }
    assert "| default record / no record | 1.10 |" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_no_process(tmp_path, number):
    scratch = {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*BENCH, "--parts=record", "--rules=sgd"],
        cwd=ROOT,
        env={**os.environ, **scratch},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "is ready" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    deadline = time.monotonic() + 10
    while (left := own(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def own(folder):
    """The commands of all processes that name the folder."""
    commands = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{folder}/" in command:
            commands.append(command)
    return commands
