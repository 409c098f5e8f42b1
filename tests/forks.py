"""Runs the program in processes that are forked from one where TensorFlow is loaded, ends them at a
chosen moment, and compares the runs that they leave.

The one process is multiprocessing's fork server. A child differs from bin/train in nothing but the
seconds that it takes to load TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import multiprocessing
import os
import pathlib
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from typing import Any
from unittest import mock

import programs

# The flags of a run that takes a second.
STEPS, EVERY = 48, 6
# Loops end at multiples of 4, 6 and 10, so that saves and evaluations come at different steps.
RUN = [f"--training_steps={STEPS}", f"--checkpoint_every={EVERY}", "--steps_per_loop=4"]
RUN += ["--display_step=10", "--optimizer=adam", "--n_hidden_1=6", "--n_hidden_2=5"]
RUN += ["--batch_size=16", "--seed=9"]
LONG = ["--training_steps=400", "--checkpoint_every=30", "--steps_per_loop=4"]
LONG += ["--display_step=50", *RUN[4:]]
# Its checkpoints are longer than its event files: a limit to the size of a file stops a save.
HEAVY = ["--watch=", "--n_hidden_1=100", "--n_hidden_2=100"]
HEAVY = [flag for flag in RUN if not flag.startswith("--n_hidden")] + HEAVY

# Python's own events that come before a file system is changed (see sys.addaudithook).
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


# ------------------------------------------------------------------ in the forked processes


def _run(
    arguments: Sequence[str],
    output: str,
    cwd: str | os.PathLike | None = None,
    environment: dict[str, str] | None = None,
    cores: Sequence[int] = (),
    kill_at: Sequence[Any] = (),
    denied: Sequence[str | os.PathLike] = (),
    file_size: int | None = None,
    die_at_file_size: bool = False,
    keep_all: bool = False,
    terminal: str | None = None,
    script: str | None = None,
) -> None:
    if terminal:  # the first that the leader of a session opens to read is its own
        os.setsid()
        sys.stdout.reconfigure(line_buffering=True)
    os.chdir(cwd or os.getcwd())
    os.environ.update(environment or {})
    if not environment and not cores:  # which may change what XLA makes
        _reuse_programs(os.path.join(os.path.dirname(output), "xla"), file_size is None)
    for stream, name in ((1, f"{output}.out"), (2, f"{output}.err")):
        os.dup2(os.open(terminal or name, os.O_RDWR), stream)
    assert "tensorflow" in sys.modules, "the fork server has loaded nothing"
    from lab.record import checkpoints
    from lab.training import main

    if cores:
        os.sched_setaffinity(0, cores)
    if keep_all:
        checkpoints.KEEP = 10**6
    if denied:
        _deny({os.fspath(path) for path in denied})
    if kill_at:
        _kill_at(*kill_at)
    if file_size is not None:
        if die_at_file_size:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if script:  # a user's, in place of the program
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    sys.argv = ["train", *arguments]
    sys.exit(main.train())


def _reuse_programs(folder: str, write: bool) -> None:
    """Lets XLA keep what it compiles, which takes most of a short run, for the next process that
    runs the same."""
    flags = [f"--tf_xla_persistent_cache_directory={folder}"]
    flags += [] if write else ["--tf_xla_persistent_cache_read_only"]
    os.environ["TF_XLA_FLAGS"] = " ".join(flags)


def _is_change(event: str, arguments: tuple) -> bool:
    """Whether an audit event comes before a change of a file system."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return event in _CHANGES or (event == "open" and bool((arguments[2] or 0) & writes))


def _deny(paths: set[str]) -> None:
    """Refuses to change these files, and what lies in these folders, as the system does to a user
    who has no right to; root has every right."""

    def hook(event: str, arguments: tuple) -> None:
        if _is_change(event, arguments):
            path = str(arguments[0])
            if {path, os.path.dirname(path)} & paths:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    sys.addaudithook(hook)


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
        if _is_change(event, arguments):
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


@functools.cache
def _server() -> Any:
    """The fork server, and a folder for what its children print."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lab.training.main", "lab.training.trial", "forks"])
    environment = programs.ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([programs.ROOT, os.path.dirname(__file__)]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OPENBLAS_NUM_THREADS": "1",  # a forked process must not miss threads that were there
    }
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()
    return context, tempfile.TemporaryDirectory(prefix="forks-")


class Child:
    """A process that runs, or ran, the program."""

    _number = 0

    def __init__(self, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        context, folder = _server()
        Child._number += 1
        self._output = os.path.join(folder.name, str(Child._number))
        for stream in ("out", "err"):
            pathlib.Path(f"{self._output}.{stream}").touch()
        words = [str(word) for word in arguments]
        self._process = context.Process(
            target=_run, args=(words, self._output), kwargs=options, daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def out(self) -> str:
        """What it has printed up to now."""
        return pathlib.Path(f"{self._output}.out").read_text()

    def wait_for(self, text: str) -> None:
        """Waits until it has printed something; fails when it ends before that."""
        deadline = time.monotonic() + 120
        while text not in self.out:
            assert self._process.is_alive(), self.wait()
            assert time.monotonic() < deadline, f"waited in vain for {text!r}: {self.out}"
            time.sleep(0.01)

    def wait(self) -> programs.Outcome:
        """Waits for its end, which must come."""
        self._process.join(600)
        status = self._process.exitcode
        assert status is not None, self.out
        return programs.Outcome(status, self.out, pathlib.Path(f"{self._output}.err").read_text())


def start(*arguments: Any, **options: Any) -> Child:
    """Starts the program with these arguments; for the options see `_run`."""
    return Child(arguments, options)


def train(*arguments: Any, **options: Any) -> programs.Outcome:
    """Runs the program to its end."""
    return start(*arguments, **options).wait()


class Program:
    """The program on a small data set; runs lie in `folder`."""

    def __init__(self, data: pathlib.Path, folder: pathlib.Path) -> None:
        self.data, self.folder = data, folder
        self._runs = 0
        self._undisturbed: dict[tuple[str, ...], pathlib.Path] = {}
        self._killed: list[pathlib.Path] = []

    def new(self):
        """The directory of a run that is not there yet."""
        self._runs += 1
        return self.folder / str(self._runs) / "run"  # the record holds this name, too

    def copy(self, directory):
        """Another run directory with the same content."""
        return shutil.copytree(directory, self.new())

    def place(self, directory):
        where = [f"--logdir={directory.parent}", f"--run_name={directory.name}"]
        return [f"--data={self.data}", *where]

    def start(self, directory, flags=RUN, **options):
        return start(*flags, *self.place(directory), **options)

    def train(self, directory, flags=RUN, **options):
        return self.start(directory, flags, **options).wait()

    def here(self, directory, *flags):
        """The same in this process, for a command that ends before the first step."""
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


def write_idx(folder: pathlib.Path, arrays: Any) -> pathlib.Path:
    """Writes a folder for --data: train images and labels, test images and labels."""
    from conftest import idx_bytes

    folder.mkdir(parents=True)
    for array, part in zip(
        arrays, ("train-images", "train-labels", "t10k-images", "t10k-labels"), strict=True
    ):
        (folder / f"{part}-idx{array.ndim}-ubyte").write_bytes(idx_bytes(array))
    return folder


def record(directory: str | os.PathLike) -> list[tuple[int, bytes]]:
    """(step, bytes) of every event of a run in TensorBoard's order, less all wall times, and less
    what says of a tag that it is a scalar or a histogram, which the first event of a file has.

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
                if plugin.plugin_name in ("scalars", "histograms"):
                    value.ClearField("metadata")
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
    assert any("_output_shapes" in node.attr for node in nodes)  # TensorBoard shows them
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


def assert_same_bits(directory: str | os.PathLike, wanted: str | os.PathLike) -> None:
    """Asserts that all tensors of the same checkpoints, every event, and the result but for its
    times are equal."""
    assert_same_record(record(directory), record(wanted))
    found, other = checkpoints(directory), checkpoints(wanted)
    assert found.keys() == other.keys()
    for step, path in other.items():
        assert tensors(found[step]) == tensors(path), f"step {step}"
    assert result(directory) == result(wanted)


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


def assert_survives_kills(program, flags, kills, random_):
    """Kills a run at random moments, each time it is started again, and asserts that nothing is
    lost, and that it ends in the undisturbed result. One that comes to its end is begun anew."""
    wanted = program.undisturbed(flags)
    begun, directory = time.monotonic(), program.new()
    assert program.train(directory, flags).status == 0
    whole_life = time.monotonic() - begun
    training = programs.result(directory)["seconds"]
    directory, killed, ends, steps = program.new(), 0, 0, set()
    while killed < kills:
        if (directory / "result.json").exists():  # the last kill came after its end
            assert_same_run(directory, wanted)
            directory, ends = program.new(), ends + 1
        child = program.start(directory, flags)
        if not killed:  # the first one comes after a checkpoint, however long compiling takes
            programs.wait_for(functools.partial(_has_moved, directory), "a checkpoint", 300)
            time.sleep(random_.uniform(0, training / 6))
        elif killed % 2 or kills < 10:  # after the start, which takes as long as all the rest
            child.wait_for(" steps on ")
            time.sleep(random_.uniform(0, training / 3))
        else:
            time.sleep(random_.uniform(0, whole_life))
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(child.pid, signal.SIGKILL)
        outcome = child.wait()
        if outcome.status == 0:
            assert_same_run(directory, wanted)
            directory, ends = program.new(), ends + 1
        else:
            assert (outcome.status, outcome.err) == (-signal.SIGKILL, "")
            killed += 1
            steps.add(max(checkpoints(directory), default=0))
            assert_nothing_is_lost(directory, wanted)
    print(f"{killed} kills, {ends} runs came to their end between them; newest steps {steps}")
    if not (directory / "result.json").exists():
        assert_goes_on(program, directory, wanted, flags)
    assert max(steps) > 0


def _has_moved(directory: pathlib.Path) -> bool:
    """Whether a run has saved a step, or has ended."""
    return max(checkpoints(directory), default=0) > 0 or (directory / "result.json").exists()


def resumed_after(out: str) -> int | None:
    """The step after which a run says that it goes on, if it does."""
    found = re.search(r"after step (\d+)$", out, re.M)
    return int(found[1]) if found else None


def passed_over(out: str) -> list[int]:
    """The steps of the checkpoints that a run says it does not use, as it names them."""
    return [int(step) for step in re.findall(r"step-(\d{9}):", out)]


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


class Killed(BaseException):
    """What no code that is right catches."""


@contextlib.contextmanager
def killed_at(moment: int, names: Sequence[str]) -> Iterator[None]:
    """Raises Killed in this process, in place of the `moment`-th call of these functions of os."""
    left = moment

    def ending(call: Callable[..., Any]) -> Callable[..., Any]:
        def end_or_call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return call(*arguments, **named)

        return end_or_call

    with mock.patch.multiple(os, **{name: ending(getattr(os, name)) for name in names}):
        yield
