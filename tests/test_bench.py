"""bin/bench: its processes, its figures, its command line. Nothing here asserts a time."""

import copy
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy

from bench import __main__, chart, common, parts, tables, workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = [sys.executable, "-m", "bench"]
TASK = {"rule": "sgd", "network": "perceptron", "sizes": [4, 3, 2], "batch": 2, "chunk": 5}
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder with data, and processes that find the contestant in tests/on_fake.py."""
    images, labels = np.zeros((9, 4), np.uint8), np.zeros(9, np.int32)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    plain = workers.environment
    fakes = {"PYTHONPATH": str(ROOT / "tests")}
    monkeypatch.setattr(workers, "environment", lambda *given: plain(*given) | fakes)
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
    assert made.pop("first_s") >= 0.005
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
    return common.Task("", "sgd", "perceptron", [4, 2], 4, 3, "", images, labels)


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


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """(module, make, network) -> the losses of two steps of four examples, and the task."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))

    def train(module, make, network, name):
        random = np.random.default_rng(0)
        images = random.integers(256, size=(8, 784), dtype=np.uint8)
        labels = random.integers(10, size=8, dtype=np.int32)
        task = importlib.import_module("common").Task(
            name, "adam", network, [784, 16, 10], 4, 2, str(tmp_path), images, labels
        )
        runner = make(importlib.import_module(module), task)
        return runner.run(task.batches()(2)), task

    return train


@pytest.mark.numbers
@pytest.mark.parametrize(
    "network", ["perceptron", "convnet", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_ours_keras_and_numpy_train_the_same_network(network, trained):
    ours, task = trained("on_everystep", lambda m, task: m.make(task), network, "ours, no record")
    keras, _ = trained("on_tensorflow", lambda m, task: m._fit(task, 2, False), network, "Keras")
    assert keras.mean() == pytest.approx(ours.mean(), rel=1e-4)
    rows = task.batches()(2)[0]
    logits = LOGITS[network](task.weights(), task.floats()[rows].astype(float))
    each = scipy.special.log_softmax(logits, 1)[range(4), task.labels[rows]]
    assert -(each.sum() if network == "perceptron" else each.mean()) == pytest.approx(ours[0], 1e-4)
    assert ours[1] != ours[0]


def test_heads_are_trained_side_by_side(trained):
    ours, task = trained("on_everystep", make_heads, "heads", "ours, default record")
    assert [*task.weights()] == [
        f"heads/{i}/{kind}" for i in (0, 1) for kind in ("weights", "bias")
    ]
    w, x = task.weights(), task.floats()[task.batches()(1)[0]]
    heads = [x @ w[f"heads/{i}/weights"] + w[f"heads/{i}/bias"] for i in (0, 1)]
    logits = scipy.special.expit(np.concatenate(heads, 1)).reshape(4, 2, 10).mean(1)
    each = scipy.special.log_softmax(logits, 1)[range(4), task.labels[task.batches()(1)[0]]]
    assert ours[0] == pytest.approx(-each.sum(), 1e-4)


def make_heads(module, task):
    task.sizes = [784, 10, 10]
    return module.make(task)


def dense(w, name, x):
    return x @ w[f"{name}/weights"] + w[f"{name}/bias"]


def perceptron(w, x):
    return dense(w, "logits", scipy.special.expit(dense(w, "h1", x)))


def convnet(w, x):
    x = x.reshape(-1, 28, 28, 1)
    for name, padding in (("conv1", 2), ("conv2", 0)):
        x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (1, 2))
        y = np.einsum("nhwcij,ijco->nhwo", windows, w[f"{name}/weights"]) + w[f"{name}/bias"]
        n, size, _, channels = y.shape
        x = y.reshape(n, size // 2, 2, size // 2, 2, channels).max((2, 4)).clip(0)
    return dense(w, "logits", dense(w, "hidden", x.reshape(n, -1)).clip(0))


def transformer(w, x):
    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + common.NORM_EPSILON)
        return scaled * w[f"{name}/scale"] + w[f"{name}/bias"]

    patches = [x.reshape(-1, 28, 28)[:, i : i + 7, j : j + 7] for i in STARTS for j in STARTS]
    x = dense(w, "embedding", np.stack(patches, 1).reshape(-1, 16, 49)) + w["positions"]
    for block in ("blocks/0", "blocks/1"):
        y, seen = norm(f"{block}/attention_norm", x), []
        q, k, v = (dense(w, f"{block}/attention/{one}", y) for one in ("query", "key", "value"))
        for head in (slice(16 * i, 16 * i + 16) for i in range(4)):
            scores = q[..., head] @ k[..., head].swapaxes(1, 2) / 4
            seen.append(scipy.special.softmax(scores, -1) @ v[..., head])
        x = x + dense(w, f"{block}/attention/output", np.concatenate(seen, -1))
        y = dense(w, f"{block}/feed_in", norm(f"{block}/feed_norm", x))
        gelu = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + dense(w, f"{block}/feed_out", gelu)
    return dense(w, "logits", norm("norm", x).mean(1))


STARTS = (0, 7, 14, 21)
LOGITS = {"perceptron": perceptron, "convnet": convnet, "transformer": transformer}


def results_of(found):
    machine = {"cpu": "a", "cores": 2, "memory_gb": 1, "system": "b", "load": 0.0}
    common = {"date": "2000-01-01", "machine": machine, "quick": False, "rules": ["sgd"]}
    return {**common, "parts": found}


def row(name, *ms, size=0.0, **more):
    figures = {"loss": 1.0, "loss_ours": 1.0, "checked": 5, "bytes": size, "peak_mb": 1.0}
    return {
        "rule": "sgd",
        "name": name,
        "ms": ms,
        "note": "",
        "about": {"fake": "1"},
        **figures,
        **more,
    }


CONVNET = {"rule": "adam", "network": "convnet"}
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
        "networks": {
            "rows": [
                row("ours, no record", 40.0, 50.0, **CONVNET),
                row("PyTorch, eager", 50.0, 50.0, **CONVNET),
                row("JAX, optax", 80.0, 80.0, **CONVNET),
                row("JAX, optax", 30.0, 30.0, rule="adam", network="transformer"),
            ]
        },
        "grid": {"seconds": 1.5, "steps": 9},
        "sizes": {
            "figures": {
                "import tensorflow, s": 2.0,
                "perceptron: launch to first step, s": 3.5,
                "peak memory of bin/train above import tensorflow's, MB": 200.0,
            }
        },
        "sweeps": {
            "rule": "sgd",
            "points": [
                {
                    "axis": "width",
                    "value": width,
                    "ms": {"no record": [2.0], "default record": [3.0]},
                }
                for width in (64, 2048)
            ],
        },
    }
)


def test_bars_are_ratios_turn_by_turn():
    found = {what: (most, measured) for what, most, measured in tables.bars(SOME)}
    assert found["default record / no record"] == (1.15, {"sgd": pytest.approx(1.05)})
    assert found["default record / fastest peer without record"][1] == {"sgd, JAX, optax": 2.0}
    assert found["convnet: no record / fastest peer"][1] == {"adam, PyTorch, eager": 0.9}
    assert found["convnet: default record / no record"] == (1.05, {})
    assert found["transformer: no record / fastest peer"] == (1.0, {})
    assert found["width 2048: default record / no record"] == (1.25, {"sgd": 1.5})
    launch = "perceptron: launch to first step / import tensorflow"
    assert found[launch] == (1.5, {"": 1.75})
    assert found[launch.replace("perceptron", "transformer")][1] == {}
    assert found["peak memory of bin/train above import tensorflow's, MB"] == (350, {"": 200.0})
    assert found["no record / fastest peer without record"][1] == {"sgd, JAX, optax": 2.0}
    assert found["default record / notebook's way with histograms"][1] == {"sgd": 0.02}
    assert found["no record / floor"][1] == {}


def test_the_tables_hold_what_was_measured_and_what_was_not():
    text = tables.to_markdown(SOME)
    for line in (
        "| ours, default record | 2.100 | 1.575..5.050 | 1.05 | 1.05..1.52 | 5 | 1 | 1.0000 (5",
        "| default record / no record | 1.15 | 1.050 (sgd) | met |",
        "**convnet, adam**",
        "**transformer, adam**",
        "| import tensorflow, s | 2 |",
        "| perceptron: launch to first step / import tensorflow | 1.50 | 1.750 | **not met** |",
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
    assert "not quiet" in text and "1.5000 (5 steps), **ours 1**" in text


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


def test_all_contestants_are_kept_to_older_instructions(fakes, monkeypatch):
    for name in __main__.ISAS["avx2"]:
        monkeypatch.setenv(name, "")  # and removed at the end
    monkeypatch.setattr(sys, "argv", ["bench", "--isa=avx2"])
    assert __main__.main() == 0
    results = json.loads((fakes / "results-avx2.json").read_text())
    assert "XLA limited to AVX2" in results["machine"]["cpu"]
    assert "oneDNN limited to AVX2" in tables.to_markdown(results)
    kept = workers.environment("torch")
    assert kept["ATEN_CPU_CAPABILITY"] == "avx2" and "avx2" in kept["TORCHINDUCTOR_CACHE_DIR"]
    assert not (fakes / "results.json").exists()


def test_gpus_are_seen_by_their_own_part_alone(fakes, monkeypatch):
    seen = [workers.environment("torch", gpu)["CUDA_VISIBLE_DEVICES"] for gpu in (False, True)]
    assert seen == ["-1", "0"]
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert __main__.main() == 0
    results = json.loads((fakes / "results.json").read_text())
    assert {*results["parts"]} == {*parts.PARTS} - {"gpu"}
    row = {"name": "a", "rule": "adam", "network": "convnet", "error": "no GPU"}
    assert "**convnet, adam, on one GPU**" in tables.to_markdown(
        results_of({"gpu": {"rows": [row]}})
    )


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
    assert list(results["parts"]) == ["record", "peers", "networks", "grid"]
    assert "StopIteration" in results["parts"]["peers"]["error"]
    assert not (fakes / "results.json").exists()
    assert "record, peers, networks, grid saved as" in capsys.readouterr().err


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
        "--isa=mmx",
    ],
)
def test_a_wrong_flag_is_one_line(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", flag])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    assert flag.split("=")[0] in err


def test_the_peers_that_are_compared_are_those_that_were_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "_rows", lambda bench, contestants, turns: contestants)

    def compared(*peers):
        return {one.name for one in parts.peers(parts.Bench(str(tmp_path), ["sgd"], peers, True))}

    ours = compared()
    assert {parts.NO_RECORD.name, parts.DEFAULT_RECORD.name} <= ours
    assert compared("torch", "jax") - ours == {
        one.name for one in parts.PEERS if one.name.startswith(("PyTorch", "JAX"))
    }


@pytest.mark.slow
def test_quick(tmp_path):
    """Every part on a CPU but `peers`, which without peers is `record` again."""
    out = tmp_path / "results.json"
    taken = [name for name in parts.PARTS if name not in ("peers", "gpu")]
    command = [*BENCH, "--quick", "--peers=none", "--rules=sgd", f"--out={out}"]
    command.append(f"--parts={','.join(taken)}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert list(results["parts"]) == taken
    for part in ("record", "networks"):
        rows = results["parts"][part]["rows"]
        assert not [row["error"] for row in rows if "error" in row]
        assert all(len(row["ms"]) == 2 for row in rows)
        ours = [row for row in rows if row["name"].startswith("ours")]
        assert all(row["loss"] == pytest.approx(row["loss_ours"], rel=1e-3) for row in ours)
    points = results["parts"]["sweeps"]["points"]
    assert {point["axis"] for point in points} == {"width", "batch", "layers"}
    assert "| default record / no record | 1.15 |" in done.stdout


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
