"""Runs the program in processes that are forked from one where TensorFlow is loaded, and ends them
at a wished-for moment; and compares the runs that they leave.

`python tests/forks.py` is that one process. It takes orders on standard input, a line of JSON each,
and answers each with a line. A child differs from bin/train in nothing but the seconds that it
takes to load TensorFlow.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import glob
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The flags of a run that takes a second.
STEPS, EVERY = 48, 6
# Loops end at multiples of 4, 6 and 10, so that saves and evaluations come at different steps.
RUN = [f"--training_steps={STEPS}", f"--checkpoint_every={EVERY}", "--steps_per_loop=4"]
RUN += ["--display_step=10", "--optimizer=adam", "--n_hidden_1=6", "--n_hidden_2=5"]
RUN += ["--batch_size=16", "--seed=9"]
LONG = ["--training_steps=400", "--checkpoint_every=30", "--steps_per_loop=10"]
LONG += ["--display_step=50", *RUN[4:]]
# Its checkpoints are longer than its event files: a limit to the size of a file stops a save.
HEAVY = ["--watch=", "--n_hidden_1=100", "--n_hidden_2=100"]
HEAVY = [flag for flag in RUN if not flag.startswith("--n_hidden")] + HEAVY

# Python's own events that come before a file system is changed (see sys.addaudithook).
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


# ------------------------------------------------------------------ in the forked processes


def serve() -> None:
    """Takes orders until there are no more."""
    from lab.training import main, trial  # noqa: F401

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _child(**order)
        print(json.dumps(answer), flush=True)


def _child(
    arguments: list[str],
    output: str,
    kill_at: list[Any] | None = None,
    file_size: int | None = None,
    die_at_file_size: bool = False,
    keep_all: bool = False,
    powerless: bool = False,
    environment: dict[str, str] | None = None,
    cores: list[int] | None = None,
) -> None:
    status = 99
    try:
        for stream, name in ((0, os.devnull), (1, f"{output}.out"), (2, f"{output}.err")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o666), stream)
        from lab.record import checkpoints
        from lab.training import main

        os.environ.update(environment or {})
        if cores:
            os.sched_setaffinity(0, cores)
        if keep_all:
            checkpoints.KEEP = 10**6
        if powerless:
            _give_up_the_right_to_write_everywhere()
        if kill_at:
            _kill_at(*kill_at)
        if file_size is not None:
            if die_at_file_size:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        sys.argv = ["train", *arguments]
        status = main.train()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _give_up_the_right_to_write_everywhere() -> None:
    """Makes root as any other owner of its files: a file's mode counts (see capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and their upper halves
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~0b111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _kill_at(kind: str, count: int, number: int = signal.SIGKILL) -> None:
    """Sends this process a signal just before its `count`-th change of a file system, of one kind
    or any.

    A kind is an audit event, "open" (to write), "fsync" or "saved": TensorFlow's files of a
    checkpoint have just been written.
    """
    import tensorflow as tf

    lock, seen = threading.Lock(), 0

    def note(what: str) -> None:
        nonlocal seen
        if kind in ("any", what):
            with lock:
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), number)

    def hook(event: str, arguments: tuple) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in _CHANGES or (event == "open" and (arguments[2] or 0) & writes):
            note(event)

    fsync, save = os.fsync, tf.raw_ops.SaveV2

    def noted_fsync(file: Any) -> None:
        note("fsync")
        fsync(file)

    def noted_save(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        note("saved")

    os.fsync, tf.raw_ops.SaveV2 = noted_fsync, noted_save
    sys.addaudithook(hook)


# ------------------------------------------------------------------ in the tests


class Child:
    """A process that runs, or ran, the program."""

    def __init__(self, forks: Forks, pid: int, output: str) -> None:
        self._forks, self.pid, self._output = forks, pid, output

    @property
    def out(self) -> str:
        """What it has printed up to now."""
        return pathlib.Path(f"{self._output}.out").read_text()

    def wait_for(self, text: str) -> None:
        """Waits until it has printed something; fails when it ends before that."""
        deadline = time.monotonic() + 120
        while text not in self.out:
            state = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state != "Z", self.wait()
            assert time.monotonic() < deadline, f"waited in vain for {text!r}: {self.out}"
            time.sleep(0.01)

    def wait(self) -> Any:
        """Waits for its end, which must come; returns a programs.Outcome."""
        import programs

        status = self._forks.ask(wait=self.pid)
        return programs.Outcome(status, self.out, pathlib.Path(f"{self._output}.err").read_text())


class Forks:
    """The process that forks, as a context."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self._folder, self._number = folder, 0

    def __enter__(self) -> Forks:
        import programs

        self._errors = open(os.path.join(self._folder, "server.err"), "w+")
        self._server = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # A forked process must not miss threads that were there before.
            env={**programs.ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            start_new_session=True,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)  # its children, too
        self._server.communicate()
        self._errors.close()

    def start(self, *arguments: Any, **options: Any) -> Child:
        """Starts the program with these arguments; for the options see `_child`."""
        self._number += 1
        output = os.path.join(self._folder, f"child-{self._number}")
        for stream in ("out", "err"):
            pathlib.Path(f"{output}.{stream}").touch()
        pid = self.ask(arguments=[str(a) for a in arguments], output=output, **options)
        assert pid > 0  # it is sent signals
        return Child(self, pid, output)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Runs the program to its end."""
        return self.start(*arguments, **options).wait()

    def ask(self, **order: Any) -> Any:
        """Sends an order, returns the answer; one that does not come in ten minutes fails."""
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        guard = threading.Timer(600, os.killpg, (self._server.pid, signal.SIGKILL))
        guard.start()
        try:
            line = self._server.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            self._errors.seek(0)
            status = self._server.wait()
            raise AssertionError(f"the forking process ended ({status}): {self._errors.read()}")
        return json.loads(line)


class Program:
    """The program on a small data set; runs lie in `folder`."""

    def __init__(self, forked, data, folder):
        self.forks, self.data, self.folder = forked, data, folder
        self._runs = 0
        self._undisturbed, self._killed = {}, []

    def new(self):
        """The directory of a run that is not there yet."""
        self._runs += 1
        return self.folder / str(self._runs) / "run"  # the record holds this name, too

    def copy(self, directory):
        """Another run directory with the same content."""
        return shutil.copytree(directory, self.new())

    def place(self, directory):
        where = [f"--logdir={directory.parent}", f"--run_name={directory.name}"]
        return [f"--data_dir={self.data}", *where]

    def start(self, directory, flags=RUN, **options):
        return self.forks.start(*flags, *self.place(directory), **options)

    def train(self, directory, flags=RUN, **options):
        return self.start(directory, flags, **options).wait()

    def here(self, directory, *flags):
        """The same in this process, for a command that ends before the first step."""
        import programs

        return programs.train(*flags, *self.place(directory))

    def undisturbed(self, flags):
        """A run of its own accord, which kept all its checkpoints; it is made once."""
        if tuple(flags) not in self._undisturbed:
            directory = self.new()
            outcome = self.train(directory, flags, keep_all=True)
            assert (outcome.status, outcome.err) == (0, ""), outcome
            self._undisturbed[tuple(flags)] = directory
        return self._undisturbed[tuple(flags)]

    def killed_at_24(self):
        """A copy of a run that was killed when it was about to save step 30, the sixth checkpoint:
        it recorded more than its last one holds."""
        if not self._killed:
            self._killed.append(self.new())
            outcome = self.train(self._killed[0], kill_at=["saved", 6])
            assert outcome.status == -signal.SIGKILL
            assert max(checkpoints(self._killed[0])) == 24
            assert len(list(self._killed[0].glob("checkpoints/unfinished-*"))) == 1
        return self.copy(self._killed[0])


def program(folder: Callable[[str], pathlib.Path], arrays: Any) -> Program:
    """The program on a data set, its four arrays given; the same one for all test modules.

    `folder` makes a new folder, as pytest's tmp_path_factory.mktemp does.
    """
    if not _programs:
        where = folder("forks")
        forked = Forks(where).__enter__()
        atexit.register(forked.__exit__)
        _programs.append(Program(forked, write_idx(where / "idx", arrays), where / "runs"))
    return _programs[0]


_programs: list[Program] = []


def write_idx(folder: pathlib.Path, arrays: Any) -> pathlib.Path:
    """Writes a folder for --data_dir: train images and labels, test images and labels."""
    from conftest import idx_bytes

    folder.mkdir(parents=True)
    for array, part in zip(
        arrays, ("train-images", "train-labels", "t10k-images", "t10k-labels"), strict=True
    ):
        (folder / f"{part}-idx{array.ndim}-ubyte").write_bytes(idx_bytes(array))
    return folder


def record(directory: str | os.PathLike) -> list[tuple[int, bytes]]:
    """(step, bytes) of every event of a run in TensorBoard's order, less all wall times.

    Of the graph, the names and operations of its nodes: numbers in names count what else the
    process has traced.
    """
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(str(directory)), "*tfevents*"))):
        for raw in event_file_loader.RawEventFileLoader(path).Load():
            event = Event.FromString(raw)
            if event.file_version:  # the head of a file
                continue
            event.wall_time = 0
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":
                    content = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
                    if content.HasField("session_start_info"):
                        content.session_start_info.start_time_secs = 0
                    if content.HasField("session_end_info"):
                        content.session_end_info.end_time_secs = 0
                    plugin.content = content.SerializeToString(deterministic=True)
            if event.graph_def:
                event.graph_def = _nodes(event.graph_def)
            found.append((event.step, event.SerializeToString(deterministic=True)))
    return found


def _nodes(graph: bytes) -> bytes:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    parsed = GraphDef.FromString(graph)
    nodes = [*parsed.node, *(node for f in parsed.library.function for node in f.node_def)]
    lines = sorted(re.sub(r"\d+", "", f"{node.name} {node.op}") for node in nodes)
    assert len(lines) > 100
    return "\n".join(lines).encode()


def checkpoints(directory: str | os.PathLike) -> dict[int, pathlib.Path]:
    """The folder of every checkpoint of a run, by step."""
    folders = sorted(pathlib.Path(directory, "checkpoints").glob("step-*"))
    return {int(path.name.removeprefix("step-")): path for path in folders}


def tensors(checkpoint: str | os.PathLike) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint, read with nothing but TensorFlow."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(os.path.join(checkpoint, "variables"))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def result(directory: str | os.PathLike) -> dict[str, Any]:
    """A run's result.json, less what no two runs have in common."""
    import programs

    full = programs.result(directory)
    return {k: v for k, v in full.items() if k not in ("seconds", "startup_seconds")}


def assert_same_run(directory: str | os.PathLike, wanted: str | os.PathLike) -> None:
    """Asserts that a run left the weights, slots, record and result of an undisturbed one."""
    found, other = checkpoints(directory), checkpoints(wanted)
    assert min(found) == 0
    assert max(found) == max(other)
    # A process that was killed while it deleted the others may have left them, in part.
    for step in {0, *sorted(found)[-2:]} & other.keys():
        assert tensors(found[step]) == tensors(other[step]), f"step {step}"
    assert_same_record(record(directory), record(wanted))
    assert result(directory) == result(wanted)
    left = {path.name for path in pathlib.Path(directory).rglob("*")}
    assert not [name for name in left if name.endswith(".tmp") or name.startswith("unfinished")]


def assert_same_record(found: list[tuple[int, bytes]], wanted: list[tuple[int, bytes]]) -> None:
    """Asserts that two records are equal, and says where they first differ."""
    for i, (one, other) in enumerate(zip(found, wanted, strict=False)):
        assert one == other, f"event {i} is of step {one[0]}, or differs from that of {other[0]}"
    assert len(found) == len(wanted)


def assert_goes_on(program, directory, wanted, flags=RUN):
    """Asserts that the command ends in the undisturbed result; returns what it printed."""
    outcome = program.train(directory, flags)
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_run(directory, wanted)
    return outcome.out


def assert_nothing_is_lost(directory, wanted):
    """Asserts what has to hold between a kill and the next start: the newest checkpoint is whole
    and the right one, and the record has no event that is not at its place."""
    there, right = checkpoints(directory), checkpoints(wanted)
    if there:
        assert tensors(there[max(there)]) == tensors(right[max(there)])
        assert min(there) == 0
    found = record(directory)
    assert_same_record(found, record(wanted)[: len(found)])


def contents(directory: str | os.PathLike) -> dict[str, bytes]:
    """Every file below a directory, by its path there; folders end with a slash."""
    paths = {path: str(path.relative_to(directory)) for path in pathlib.Path(directory).rglob("*")}
    return {
        f"{name}/" if path.is_dir() else name: b"" if path.is_dir() else path.read_bytes()
        for path, name in paths.items()
    }


def assert_one_line(outcome: Any, status: int, *words: str) -> None:
    """Asserts that a program ended with one line on standard error that has all these words."""
    assert outcome.status == status, outcome
    assert outcome.err.startswith("train: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert str(word) in outcome.err, outcome.err


if __name__ == "__main__":
    serve()
