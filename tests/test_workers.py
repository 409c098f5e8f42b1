"""Several workers, as processes on this machine: the run of one, and what happens to the others
when one does not come, dies, hangs or wants something else.

Nothing here waits for TensorFlow without a limit: every process is killed in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import events
import forks
import numpy as np
import programs
import pytest

from lab.errors import LabError
from lab.processes import cluster, launch
from lab.processes.cluster import Cluster, from_environment, meet

LAUNCH = [sys.executable, "-m", "lab.processes.launch"]
LIMIT = 120  # seconds, after which a test fails that should end in a few

# Loops end at multiples of 5; a batch of 15 gives the two replicas 7 and 8 examples.
RUN = ["--training_steps=40", "--display_step=20", "--checkpoint_every=10", "--steps_per_loop=5"]
RUN += ["--optimizer=adam", "--n_hidden_1=6", "--n_hidden_2=5", "--batch_size=15", "--run_name=x"]
RUN += ["--watch=weights,gradients,replicas", "--initializer=glorot"]
ENDLESS = ["--training_steps=1000000", "--display_step=20", "--checkpoint_every=1000", *RUN[3:]]


def free_ports(count):
    doors = [socket.socket() for _ in range(count)]
    for door in doors:
        door.bind(("127.0.0.1", 0))
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


def addresses(count):
    return tuple(f"127.0.0.1:{port}" for port in free_ports(count))


def tf_config(workers, index):
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": list(workers)}, "task": task})


class Process:
    """A program whose output goes to a file, in a session of its own."""

    def __init__(self, command, cwd, **environment):
        cwd.mkdir(parents=True, exist_ok=True)
        self._log = cwd / f"output-{time.monotonic_ns()}"
        with open(self._log, "w") as file:
            self.popen = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**programs.ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self):
        return self._log.read_text()

    @property
    def lines(self):
        """What it printed, less what TensorFlow's native code says when a peer is lost."""
        native = re.compile(r"E\d{4} |Additional GRPC|:UNKNOWN|The error could|RPC: |/job:|The tas")
        return [line for line in self.output.splitlines() if line and not native.match(line)]

    def wait(self, seconds=LIMIT):
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds} s: {self.output}") from None

    def wait_for(self, text):
        def seen():
            assert self.popen.poll() is None, self.output
            return text in self.output

        programs.wait_for(seen, text, LIMIT)

    def send(self, number):
        os.kill(self.popen.pid, number)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(30)


@pytest.fixture
def start(tmp_path):
    """Starts programs, all of which have ended when the test has."""
    started = []

    def start(command, cwd=tmp_path, **environment):
        started.append(Process(command, cwd, **environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def pair(start, tmp_path, idx_folder):
    """Starts two workers by hand, each in a folder of its own."""

    def pair(flags, more=((), ()), **environment):
        workers = addresses(2)
        return [
            start(
                [*programs.TRAIN, f"--data={idx_folder}", *flags, *more[index]],
                tmp_path / f"worker-{index}",
                TF_CONFIG=tf_config(workers, index),
                **environment,
            )
            for index in range(2)
        ]

    return pair


def launched(start, idx_folder, flags, cwd, workers=2):
    train = [*programs.TRAIN, f"--data={idx_folder}", *flags]
    return start([*LAUNCH, f"--workers={workers}", "--", *train], cwd)


def assert_ends(process, status, *words):
    """Asserts that a program ends with this status, its last line with these words, and without a
    traceback."""
    assert process.wait() == status, process.output
    assert "Traceback" not in process.output, process.output
    for word in words:
        assert word in process.lines[-1], process.output


def files_of(folder):
    return [path for path in folder.rglob("*") if not path.name.startswith("output-")]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


# ------------------------------------------------------------------ TF_CONFIG


def test_a_cluster_from_the_environment():
    two = ("host0:2222", "[::1]:1")
    assert from_environment({}) is None and from_environment({"TF_CONFIG": ""}) is None
    found = from_environment({"TF_CONFIG": tf_config(two, 1)})
    assert found == Cluster(two, 1)
    assert found.me == "worker 1 ([::1]:1)" and found.others == "worker 0 (host0:2222)"
    # A worker alone is none of several.
    assert from_environment({"TF_CONFIG": tf_config(two[:1], 0)}) is None


MALFORMED = {
    "no JSON": "{",
    "no object": "[1]",
    "null": "null",
    "no cluster": '{"task": {"type": "worker", "index": 0}}',
    "no task": '{"cluster": {"worker": ["a:1", "b:2"]}}',
    "no workers": '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
    "no list": '{"cluster": {"worker": 7}, "task": {"type": "worker", "index": 0}}',
    "no index": '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker"}}',
    "no number": tf_config(["a:1", "b:2"], "first"),
    "too high": tf_config(["a:1", "b:2"], 2),
    "below 0": tf_config(["a:1", "b:2"], -1),
    "twice": tf_config(["a:1", "a:1"], 0),
    "no port": tf_config(["a", "b:2"], 0),
    "no host": tf_config([":1", "b:2"], 0),
    "port too high": tf_config(["a:65536", "b:2"], 0),
    "port 0": tf_config(["a:0", "b:2"], 0),
    "no text": tf_config([1, 2], 0),
    "no member": tf_config([], 0),
    "a parameter server": tf_config(["a:1"], 0).replace("worker", "ps"),
    "one more kind": '{"cluster": {"worker": ["a:1"], "chief": ["b:1"]}, '
    '"task": {"type": "chief", "index": 0}}',
    "lines": '{\n"cluster":\n\n',
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_tf_config(what):
    with pytest.raises(LabError, match=r"^TF_CONFIG") as error:
        from_environment({"TF_CONFIG": MALFORMED[what]})
    assert '{"cluster": {"worker": ["host0:port"' in str(error.value)
    assert "\n" not in str(error.value)


def test_a_malformed_tf_config_ends_the_program_before_tensorflow(
    start, monkeypatch, no_tensorflow
):
    process = start(programs.TRAIN, TF_CONFIG=MALFORMED["no task"], PYTHONPATH=no_tensorflow)
    assert_ends(process, 1, "train: TF_CONFIG", "task")
    assert len(process.lines) == 1
    # The same with a patience that is no number.
    monkeypatch.setenv("TF_CONFIG", tf_config(addresses(2), 0))
    monkeypatch.setenv("LAB_PATIENCE", "soon")
    forks.assert_one_line(programs.train(), 1, "LAB_PATIENCE=soon")


# ------------------------------------------------------------------ meeting


def meeting(clusters, seconds, monkeypatch):
    """What each of these workers gets when they meet at once: None or its LabError's text."""
    monkeypatch.setenv("LAB_PATIENCE", str(seconds))
    results = {}

    def one(member):
        try:
            results[member.index] = meet(member)
        except LabError as error:
            results[member.index] = str(error)

    threads = [threading.Thread(target=one, args=(member,), daemon=True) for member in clusters]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_workers_meet_in_any_order(order, monkeypatch):
    workers = addresses(3)
    found = meeting([Cluster(workers, index) for index in order], 20, monkeypatch)
    assert found == {0: None, 1: None, 2: None}


def test_a_worker_that_does_not_come_is_named(monkeypatch):
    workers = addresses(3)
    found = meeting([Cluster(workers, index) for index in (0, 1)], 1, monkeypatch)
    names = [f"worker {index} ({address})" for index, address in enumerate(workers)]
    assert found[0].startswith(names[0]) and names[2] in found[0] and names[1] not in found[0]
    assert found[1].startswith(names[1]) and names[0] in found[1]
    found = meeting([Cluster(workers, index) for index in (1, 2)], 1, monkeypatch)
    assert all(names[0] in found[index] for index in (1, 2))


def test_strangers_at_the_door(monkeypatch):
    """A probe that says nothing, one that says something else, a worker of another cluster: they
    are sent away, and the workers still meet."""
    workers = addresses(2)
    host, port = workers[0].split(":")
    monkeypatch.setenv("LAB_PATIENCE", "20")
    results = []
    chief = threading.Thread(target=lambda: results.append(meet(Cluster(workers, 0))), daemon=True)
    chief.start()

    def knock():
        with contextlib.suppress(OSError):
            return socket.create_connection((host, int(port)), timeout=5)

    lines = [programs.wait_for(knock, "the door", 10)]
    for words in (b"GET / HTTP/1.1\r\n", b"everystep 7", b"everystep 0", b"everystep x", b"\xff"):
        lines.append(programs.wait_for(knock, "the door", 10))
        lines[-1].sendall(words)
    for line in lines[1:]:
        with contextlib.suppress(ConnectionError):
            assert line.recv(2) == b""
    assert chief.is_alive() and not results
    meet(Cluster(workers, 1))
    chief.join(20)
    assert results == [None]
    for line in lines:
        line.close()


def test_a_taken_port_is_named(monkeypatch):
    workers = addresses(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(workers[1].rpartition(":")[2])))
        taken.listen()
        monkeypatch.setenv("LAB_PATIENCE", "5")
        with pytest.raises(LabError) as error:
            meet(Cluster(workers, 1))
    assert str(error.value).startswith(f"worker 1 ({workers[1]})")
    assert "port" in str(error.value) and "in use" in str(error.value)
    with pytest.raises(LabError, match=r"^worker 0 \(no.such.host.invalid:1\)"):
        meet(Cluster(("no.such.host.invalid:1", workers[0]), 0))


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_patience_that_is_none(text):
    with pytest.raises(LabError, match=f"^LAB_PATIENCE={text}:"):
        cluster.patience({"LAB_PATIENCE": text})


def test_a_patience():
    assert cluster.patience({}) == cluster.patience({"LAB_PATIENCE": ""}) == cluster.PATIENCE
    assert cluster.patience({"LAB_PATIENCE": "5"}) == 5


@pytest.mark.parametrize("index", [0, 1])
def test_a_program_whose_peer_never_comes(monkeypatch, tmp_path, index):
    monkeypatch.chdir(tmp_path)
    workers = addresses(2)
    monkeypatch.setenv("TF_CONFIG", tf_config(workers, index))
    monkeypatch.setenv("LAB_PATIENCE", "1")
    me, other = (f"worker {i} ({workers[i]})" for i in (index, 1 - index))
    forks.assert_one_line(programs.train(*RUN), 1, me, other)
    assert not (tmp_path / "logs").exists()


def test_a_program_whose_port_is_taken(monkeypatch):
    workers = addresses(2)
    monkeypatch.setenv("TF_CONFIG", tf_config(workers, 0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(workers[0].rpartition(":")[2])))
        taken.listen()
        outcome = programs.train(*RUN)
    forks.assert_one_line(outcome, 1, f"worker 0 ({workers[0]})", "port")


# ------------------------------------------------------------------ bin/launch


def worker(*kind):
    """The command of a worker for bin/launch that does as launch_worker.py says."""
    return [sys.executable, os.path.join(programs.CHILDREN, "launch_worker.py"), *map(str, kind)]


def test_launch_marks_each_line_with_its_worker():
    outcome = programs.launch("--workers=3", "--", *worker("lines"))
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    for index in range(3):
        mine = [line for line in lines if line.startswith(f"[worker {index}] ")]
        words = sorted(line.partition("] ")[2] for line in mine)
        assert words == sorted([str(index), "one", "no end"]), outcome.out
    assert len(lines) == 9


def test_launch_gives_each_worker_its_place():
    outcome = programs.launch("--workers=2", "--", *worker("place"))
    found = [
        from_environment({"TF_CONFIG": line.partition("] ")[2]})
        for line in sorted(outcome.out.splitlines())
    ]
    assert [one.index for one in found] == [0, 1]
    assert found[0].workers == found[1].workers and len(set(found[0].workers)) == 2
    assert all(address.startswith("127.0.0.1:") for address in found[0].workers)


@pytest.mark.parametrize(
    ("statuses", "status"), [((0, 3), 3), ((5, 0), 5), ((0, -signal.SIGKILL), 137)]
)
def test_launch_ends_as_its_workers_do(statuses, status):
    assert (
        programs.launch("--workers=2", "--", *worker("end", *map(int, statuses))).status == status
    )


def test_launch_notices_a_later_worker_that_fails_first(monkeypatch):
    """Though the one before it goes on: its status counts, and the others' time begins."""
    monkeypatch.setattr(launch, "GRACE", 1)
    outcome = programs.launch("--workers=2", "--", *worker("fail_first"))
    assert (outcome.status, outcome.out) == (7, "")
    assert outcome.err.startswith("launch: worker 0 ") and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers=2"], "command"),
        (["--workers=0", "--", "true"], "--workers=0"),
        (["--", "/no/such/program"], "/no/such/program"),
    ],
)
def test_launch_refuses(arguments, words):
    outcome = programs.launch(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("launch: ") and outcome.err.count("\n") == 1
    assert words in outcome.err


def test_launch_passes_a_signal_on(start):
    process = start([*LAUNCH, "--workers=2", "--", *worker("wait")])
    programs.wait_for(lambda: process.output.count("on") == 2, "both workers")
    process.send(signal.SIGTERM)
    assert process.wait(30) == 143


def test_a_second_signal_ends_launch_and_all_its_workers(start):
    """Also those that do not listen."""
    process = start([*LAUNCH, "--workers=2", "--", *worker("ignore")])
    programs.wait_for(lambda: process.output.count("on") == 2, "both workers")
    process.send(signal.SIGTERM)
    time.sleep(0.5)
    assert process.popen.poll() is None
    process.send(signal.SIGTERM)
    assert process.wait(30) == 143
    for line in process.lines:
        pid = line.rpartition(" ")[2]
        programs.wait_for(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), pid, 20)


# ------------------------------------------------------------------ the run of two workers


@pytest.fixture(scope="module")
def twice(tmp_path_factory, tiny):
    """The same run by two workers with bin/launch, and on two devices of one process; their
    folders, and what bin/launch printed."""
    folder = tmp_path_factory.mktemp("twice")
    data = forks.write_idx(folder / "idx", tiny)
    process = Process(
        [*LAUNCH, "--workers=2", "--", *programs.TRAIN, f"--data={data}", *RUN],
        folder / "workers",
    )
    try:
        status = process.wait()
        output = process.output
    finally:
        process.kill()
    assert status == 0, output
    flags = [f"--data={data}", "--devices=cpu:2", f"--logdir={folder / 'devices'}", *RUN]
    assert programs.train(*flags).status == 0
    return folder / "workers" / "logs" / "x", folder / "devices" / "x", output


def bits(run, step):
    return forks.tensors(forks.checkpoints(run)[step])


def assert_one_run(workers, devices):
    """Asserts that two workers leave what two devices do: of two terms the sum is the same in
    either order, so even the bits."""
    assert sorted(forks.checkpoints(workers)) == sorted(forks.checkpoints(devices))
    for step in forks.checkpoints(workers):
        assert bits(workers, step) == bits(devices, step), f"step {step}"
    one, other = (events.read(run) for run in (workers, devices))
    assert one.keys() == other.keys()
    for tag, series in one.items():
        assert series.steps == other[tag].steps
        if series.values.dtype.kind == "f":
            np.testing.assert_array_equal(series.values, other[tag].values, err_msg=tag)
    mine, theirs = (forks.result(run) for run in (workers, devices))
    assert (mine["workers"], theirs["workers"]) == (2, 1)
    assert (mine["replicas"], theirs["replicas"]) == (2, 2)
    for other in (mine, theirs):
        for name in ("workers", "devices", "fingerprint", "network"):  # a graph for each strategy
            del other[name]
    assert mine == theirs


@pytest.mark.slow
def test_two_workers_do_what_two_devices_do(twice):
    workers, devices, _ = twice
    assert_one_run(workers, devices)


@pytest.mark.slow
def test_the_chief_alone_speaks_and_writes(twice):
    workers, _, output = twice
    assert len(events.files(workers)) == 1
    assert [path.name for path in workers.parent.iterdir()] == ["x"]
    lines = output.splitlines()
    assert all(line.startswith("[worker 0] ") for line in lines), output
    assert ", 2 replicas" in lines[0]
    assert any(re.match(r"\[worker 0\] (completed|collapsed) at step 40", line) for line in lines)


@pytest.mark.slow
def test_two_workers_give_the_curve_of_one_device(start, tmp_path, idx_folder):
    """200 steps with shares of 7 and 8 examples."""
    flags = ["--training_steps=200", *RUN[1:], "--optimizer=sgd", "--reduction=mean"]
    flags += ["--learning_rate=0.5", "--watch="]
    process = launched(start, idx_folder, flags, tmp_path / "two")
    alone = [f"--data={idx_folder}", f"--logdir={tmp_path / 'one'}", *flags, "--devices=cpu:1"]
    assert programs.train(*alone).status == 0
    assert process.wait() == 0, process.output
    two, one = (
        events.read(folder)["loss"] for folder in (tmp_path / "two/logs/x", tmp_path / "one/x")
    )
    assert two.steps == one.steps == list(range(1, 201))
    np.testing.assert_allclose(two.values, one.values, rtol=1e-4)
    assert one.values[-20:].mean() < 0.95 * one.values[:20].mean()


@pytest.mark.slow
def test_three_workers_and_folders_of_their_own(start, tmp_path, idx_folder):
    """By hand, as on three machines: the others leave nothing in theirs. Three terms have sums
    that depend on their order, so here the weights are equal within rounding."""
    workers = addresses(3)
    processes = [
        start(
            [*programs.TRAIN, f"--data={idx_folder}", *RUN, f"--logdir=logs-{index}"],
            tmp_path / f"worker-{index}",
            TF_CONFIG=tf_config(workers, index),
        )
        for index in range(3)
    ]
    for process in processes:
        assert process.wait() == 0, process.output
    for index in (1, 2):
        assert files_of(tmp_path / f"worker-{index}") == []
        assert processes[index].output == ""
    flags = [f"--data={idx_folder}", f"--logdir={tmp_path / 'devices'}", *RUN]
    assert programs.train(*flags, "--devices=cpu:3").status == 0
    one, other = (
        events.read(run)["loss"].values
        for run in (tmp_path / "worker-0/logs-0/x", tmp_path / "devices/x")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(start, tmp_path, idx_folder, twice):
    workers = twice[0].parents[1]
    before = {path: path.stat().st_mtime_ns for path in files_of(workers) if path.name != "lock"}
    data = twice[0].parents[2] / "idx"
    process = launched(start, data, RUN, workers)
    assert process.wait() == 0, process.output
    assert "already" in process.output and "--overwrite" in process.output
    assert all(line.startswith("[worker 0] ") for line in process.lines)
    now = {path: path.stat().st_mtime_ns for path in files_of(workers) if path.name != "lock"}
    changed = {path.name for path in now if before.get(path) != now[path]}
    assert changed <= {"config.json", "x"}


@pytest.mark.slow
def test_a_changed_configuration_is_refused_on_all(pair, tmp_path, twice, idx_folder):
    run = tmp_path / "worker-0" / "logs" / "x"
    run.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", twice[0], run], check=True)
    processes = pair([*RUN, "--learning_rate=0.02"])
    words = "logs/x", "learning_rate was 0.01, is 0.02"
    assert_ends(processes[0], 1, "train: logs/x", *words)
    assert_ends(processes[1], 1, "train: worker 0 ", *words)
    assert [len(process.lines) for process in processes] == [1, 1]
    assert forks.result(run)["config"]["learning_rate"] == 0.01


# ------------------------------------------------------------------ interrupted


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_that_lost_a_worker_goes_on_to_the_same_result(
    start, pair, tmp_path, idx_folder, twice, victim
):
    """Killed on the way, both, at the sight of a checkpoint; the same command goes on."""
    flags = [flag for flag in RUN if "training_steps" not in flag]
    flags += ["--training_steps=400", "--display_step=50"]
    processes = pair(flags)
    run = tmp_path / "worker-0" / "logs" / "x"
    programs.wait_for(lambda: len(forks.checkpoints(run)) > 1, "a checkpoint", LIMIT)
    processes[victim].send(signal.SIGKILL)
    assert processes[victim].wait() == -signal.SIGKILL
    assert processes[1 - victim].wait() == 1
    reached = max(forks.checkpoints(run))
    assert 0 < reached < 400
    again = pair(flags)
    assert [process.wait() for process in again] == [0, 0], again[0].output + again[1].output
    assert f"after step {reached}\n" in again[0].output
    whole = [f"--data={idx_folder}", f"--logdir={tmp_path / 'whole'}", *flags]
    assert programs.train(*whole, "--devices=cpu:2").status == 0
    other = tmp_path / "whole" / "x"
    assert bits(run, 400) == bits(other, 400)
    one, two = (events.read(folder) for folder in (run, other))
    assert one["loss"].steps == list(range(1, 401))
    for tag in ("loss", "gradient/norm", "gradient/noise/scale", "h1/bias/gradient/replica_1"):
        assert one[tag].steps == two[tag].steps
        np.testing.assert_array_equal(one[tag].values, two[tag].values)
    assert forks.result(run)["evaluations"] == forks.result(other)["evaluations"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launch", 0, 1])
def test_a_signal_stops_all_at_one_step(start, pair, tmp_path, idx_folder, target):
    """SIGTERM to bin/launch or to one of the workers: a checkpoint at a step that all have
    reached, exit status 143, and the same command goes on after it."""
    if target == "launch":
        processes = [launched(start, idx_folder, ENDLESS, tmp_path / "worker-0")]
    else:
        processes = pair(ENDLESS)
    processes[0].wait_for("step     40")
    processes[0 if target == "launch" else target].send(signal.SIGTERM)
    for process in processes:
        assert_ends(process, 128 + signal.SIGTERM)
    assert "interrupted at step" in processes[0].output
    step = int(re.search(r"interrupted at step (\d+)", processes[0].output)[1])
    run = tmp_path / "worker-0" / "logs" / "x"
    assert max(forks.checkpoints(run)) == step == forks.result(run)["step"]
    assert forks.result(run)["status"] == "interrupted"
    if target == 1:
        again = pair(ENDLESS)
        again[0].wait_for(f"after step {step}\n")


@pytest.mark.slow
def test_a_signal_while_one_worker_evaluates_stops_all_at_one_step(start, tmp_path, idx_folder):
    flags = [f"--data={idx_folder}", f"--logdir={tmp_path}", *ENDLESS]
    process = start([*LAUNCH, "--workers=2", "--", *worker("train_interrupted", *flags)])
    assert process.wait() == 128 + signal.SIGTERM, process.output
    assert programs.result(tmp_path / "x")["step"] == 20


# ------------------------------------------------------------------ faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)]
)
def test_a_worker_that_dies_or_hangs_is_named(pair, number, victim):
    """A stopped one is noticed by the heartbeats that it owes, which takes some ten seconds."""
    processes = pair(ENDLESS)
    processes[0].wait_for("step     40")
    processes[victim].send(number)
    begun = time.monotonic()
    other = processes[1 - victim]
    assert_ends(other, 1, f"train: worker {1 - victim} (", f"worker {victim} (", "was lost")
    print(f"noticed after {time.monotonic() - begun:.1f} s")


@pytest.mark.slow
def test_launch_ends_all_when_one_is_lost(start, tmp_path, idx_folder):
    process = launched(start, idx_folder, ENDLESS, tmp_path)
    process.wait_for("step     40")
    workers = children(process.popen.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL, process.output
    assert re.search(r"\[worker 0\] train: worker 0 \S+ worker 1 \S+ was lost", process.output)
    for pid in workers:
        assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.slow
def test_a_worker_that_came_but_does_not_start(start, tmp_path, idx_folder):
    """It met the other, and was gone before TensorFlow: there nothing else would end the wait."""
    workers = addresses(2)
    alone = start(
        [*programs.TRAIN, f"--data={idx_folder}", *RUN],
        TF_CONFIG=tf_config(workers, 0),
        LAB_PATIENCE="10",
    )
    meet(Cluster(workers, 1))
    assert_ends(alone, 1, f"train: worker 0 ({workers[0]})", f"worker 1 ({workers[1]})")
    assert len(alone.lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ("--learning_rate=0.01", "--learning_rate=0.02", "learning_rate is 0.02, there 0.01"),
        ("--steps_per_loop=5", "--steps_per_loop=7", "steps_per_loop is 7, there 5"),
    ],
)
def test_workers_that_want_different_things(pair, tmp_path, mine, theirs, words):
    """Before anything is written."""
    processes = pair(RUN, ([mine], [theirs]))
    assert_ends(processes[0], 1, "train: worker 0 (", "worker 1 (", "does something else")
    assert_ends(processes[1], 1, "train: worker 1 (", words)
    assert [len(process.lines) for process in processes] == [1, 1]
    assert files_of(tmp_path / "worker-0") == files_of(tmp_path / "worker-1") == []


def test_a_worker_trains_on_one_cpu_device(tmp_path):
    """Else each would be several replicas of several workers; refused before TensorFlow waits."""
    from lab.step import placement as devices

    with pytest.raises(LabError, match=r"^--devices=cpu:2: "):
        devices.make_strategy("cpu:2", Cluster(addresses(2), 0))
