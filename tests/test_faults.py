"""What goes wrong outside the program, and in the numbers: said in a clear line, nothing lost."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf
from forks import (
    HEAVY,
    LONG,
    RUN,
    STEPS,
    assert_goes_on,
    assert_nothing_is_lost,
    assert_one_line,
    assert_same_run,
)
from references import readme_accuracy

from lab import data

AS_ROOT = os.geteuid() == 0


# ------------------------------------------------------------------ no room


def assert_no_room(program, directory, wanted, flags=RUN, **options):
    """Asserts that a run that finds no room says so in a line, and loses nothing."""
    before = forks.checkpoints(directory)
    outcome = program.train(directory, flags, **options)
    assert_one_line(outcome, 1, directory.parent)
    assert re.search("File too large|No space left", outcome.err), outcome.err
    assert re.search("free some space|--logdir", outcome.err), outcome.err
    assert not (directory / "result.json").exists()
    assert set(before) <= {0} | set(forks.checkpoints(directory)) or max(before) < max(
        forks.checkpoints(directory)
    )
    assert_nothing_is_lost(directory, wanted)
    return outcome


@pytest.mark.parametrize(
    "sizes",
    [
        (100_000,),
        # In the second, TensorFlow's writer loses events without an error.
        *(pytest.param(one, marks=pytest.mark.slow) for one in [(600, 100_000), (230_048,)]),
    ],
)
def test_files_that_may_not_grow(program, whole, sizes):
    """In config.json, in the events; with room, the run goes on."""
    directory = program.new()
    for size in sizes:
        assert_no_room(program, directory, whole, file_size=size)
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_files_that_may_not_grow_at_many_sizes(program, whole):
    directory = program.new()
    for size in range(20_000, 200_000, 58_002):  # less, and TensorFlow cannot trace
        assert_no_room(program, directory, whole, file_size=size)
        if max(forks.checkpoints(directory), default=0) > 30:
            assert_goes_on(program, directory, whole)
            directory = program.new()
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_no_room_in_a_save(program):
    """The checkpoints of this run are longer than its events."""
    directory, wanted = program.new(), program.undisturbed(HEAVY)
    outcome = assert_no_room(program, directory, wanted, HEAVY, file_size=100_000)
    assert "step 0 " in outcome.err
    assert program.train(directory, HEAVY, kill_at=["saved", 3]).status == -signal.SIGKILL
    outcome = assert_no_room(program, directory, wanted, HEAVY, file_size=100_000)
    assert "step 12 " in outcome.err
    assert sorted(forks.checkpoints(directory)) == [0, 6]
    assert not list(directory.rglob("unfinished*"))
    assert_goes_on(program, directory, wanted, HEAVY)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of its own on a folder; yields a function that gives it another size."""
    if not AS_ROOT:
        pytest.skip("only root can mount a small file system")

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)],
            capture_output=True,
            text=True,
        )

    done = mount(f"size={size}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield lambda size: mount("remount", f"size={size}").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(program, whole):
    directory = program.new()
    directory.parent.mkdir(parents=True)
    with small_disk(directory.parent, "4k") as grow:
        for size in ("4k", "16k", "100k", "200k", "320k"):
            grow(size)
            assert_no_room(program, directory, whole)
        assert max(forks.checkpoints(directory)) > 0
        grow("20m")
        assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_a_full_disk_in_a_save(program):
    directory, wanted = program.new(), program.undisturbed(HEAVY)
    directory.parent.mkdir(parents=True)
    with small_disk(directory.parent, "20m") as grow:
        assert program.train(directory, HEAVY, kill_at=["saved", 4]).status == -signal.SIGKILL
        shutil.rmtree(next((directory / "checkpoints").glob("unfinished*")))
        used = shutil.disk_usage(directory).used
        grow(f"{used // 1024 + 80}k")
        outcome = assert_no_room(program, directory, wanted, HEAVY)
        assert "step 18 " in outcome.err
        assert sorted(forks.checkpoints(directory)) == [0, 6, 12]
        grow("20m")
        assert_goes_on(program, directory, wanted, HEAVY)


# ------------------------------------------------------------------ no right


def test_a_folder_that_may_not_be_written(program):
    directory = program.new()
    directory.parent.mkdir(parents=True)
    outcome = program.train(directory, denied=[directory.parent])
    assert_one_line(outcome, 1, directory, "Permission denied", "--logdir")
    assert list(directory.parent.iterdir()) == []


@pytest.mark.slow
def test_checkpoints_that_may_not_be_written(program, whole, killed_at_24):
    directory = killed_at_24
    folder = directory / "checkpoints"
    shutil.rmtree(next(folder.glob("unfinished*")))
    before = forks.contents(folder)
    outcome = program.train(directory, denied=[folder])
    assert_one_line(outcome, 1, folder, "step 30", "Permission denied")
    assert forks.contents(folder) == before
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lock", "config.json", "events"])
def test_files_that_may_not_be_written(program, whole, killed_at_24, name):
    """The record is continued in another file, but is first cut back; config.json is replaced."""
    directory = killed_at_24
    (path,) = directory.glob(f"{name}*")
    before = forks.contents(directory / "checkpoints")
    outcome = program.train(directory, denied=[path])
    if name == "config.json":
        assert (outcome.status, outcome.err) == (0, "")
    else:
        assert_one_line(outcome, 1, path, "Permission denied")
        assert forks.contents(directory / "checkpoints") == before
        assert_goes_on(program, directory, whole)
    assert_same_run(directory, whole)


@pytest.mark.slow
def test_data_that_may_only_be_read_are_enough(program, whole):
    directory = program.new()
    outcome = program.train(directory, denied=[program.data, *program.data.iterdir()])
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_run(directory, whole)


# ------------------------------------------------------------------ what does not belong there


def put(name, content="mine"):
    def do(directory):
        path = directory / name
        path.mkdir() if content is None else path.write_text(content)

    return do


FOREIGN = {
    "a file": (put("thesis.txt"), "thesis.txt"),
    "a hidden file": (put(".thesis"), ".thesis"),
    "a folder": (put("data", None), "data"),
    "a backup": (put("result.json.bak"), "result.json.bak"),
    "a lock that is a folder": (
        lambda directory: ((directory / "lock").unlink(), (directory / "lock").mkdir()),
        "lock",
    ),
    "an empty config.json": (put("config.json", ""), "config.json"),
    "half a config.json": (put("config.json", '{"config": {"n_hidden_1": 6,'), "config.json"),
    "an odd config.json": (put("config.json", "[]"), "config.json"),
    "no config.json": (lambda directory: (directory / "config.json").unlink(), "config.json"),
    "a config.json that is a folder": (
        lambda directory: (
            (directory / "config.json").unlink(),
            (directory / "config.json").mkdir(),
        ),
        "config.json",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_odd_in_a_run_directory_is_named_and_left_alone(program, killed_at_24, what):
    directory = killed_at_24
    do, name = FOREIGN[what]
    do(directory)
    before = forks.contents(directory)
    outcome = program.here(directory, *RUN)
    assert_one_line(outcome, 1, directory, name)
    assert len(outcome.err) < 600, outcome.err  # clear, that is
    assert forks.contents(directory) == before


@pytest.mark.parametrize(
    "name", ["logdir", "run", pytest.param("checkpoints", marks=pytest.mark.slow)]
)
def test_a_file_where_a_folder_should_be_is_named_and_left_alone(program, name):
    directory = program.new()
    path = {"logdir": directory.parent, "run": directory, "checkpoints": directory / "checkpoints"}
    path[name].parent.mkdir(parents=True, exist_ok=True)
    if name == "checkpoints":
        assert program.train(directory, kill_at=["os.mkdir", 3]).status == -signal.SIGKILL
        shutil.rmtree(directory / "checkpoints")
    path[name].write_text("mine")
    assert_one_line(program.here(directory, *RUN), 1, path[name])
    assert path[name].read_text() == "mine"


# ------------------------------------------------------------------ two at once


def stopped(pid):
    """Whether every thread of a process has stopped; one in a system call does after that."""
    threads = pathlib.Path("/proc", str(pid), "task").iterdir()
    return all("State:\tT" in (thread / "status").read_text() for thread in threads)


def test_a_run_that_is_locked_is_refused(program, killed_at_24):
    before = forks.contents(killed_at_24)
    with open(killed_at_24 / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ([], ["--seed=10", "--overwrite"]):
            outcome = program.here(killed_at_24, *RUN, *more)
            assert_one_line(outcome, 1, "another process", killed_at_24, "--run_name")
            assert outcome.out == ""
    assert forks.contents(killed_at_24) == before


@pytest.mark.slow
def test_a_run_has_one_process(program, long):
    """The second one is refused whatever it wants, and the first does not notice."""
    directory = program.new()
    first = program.start(directory, LONG)
    first.wait_for("step     50")
    os.kill(first.pid, signal.SIGSTOP)
    programs.wait_for(lambda: stopped(first.pid), "the stop")
    before = forks.contents(directory)
    for more in ([], ["--overwrite"], ["--seed=10"], ["--seed=10", "--overwrite"]):
        outcome = program.here(directory, *LONG, *more)
        assert_one_line(outcome, 1, "another process", directory, "--run_name")
        assert outcome.out == ""
    assert forks.contents(directory) == before
    os.kill(first.pid, signal.SIGCONT)
    outcome = first.wait()
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_run(directory, long)


# ------------------------------------------------------------------ NaN and infinity

# What each of these runs does is found by the eager loop below; here is only how they differ.
DIVERGING = {
    # Everything is NaN after some tens of steps, in the middle of a loop.
    "all": ["--optimizer=adam", "--activation=tanh", "--learning_rate=1e37"],
    # The sum of the losses overflows, and nothing else.
    "loss": [
        *("--optimizer=sgd", "--activation=tanh", "--learning_rate=3e35"),
        "--loss=softmax_cross_entropy",
    ],
    # Some entries of the weights only, and the loss is finite.
    "weights": [
        *("--optimizer=rmsprop", "--activation=relu", "--learning_rate=5e37"),
        *("--init_stddev=0.5", "--loss=softmax_cross_entropy"),
    ],
}
TAGS = [f"{layer}/{kind}" for layer in ("h1", "h2", "logits") for kind in ("weights", "bias")]


def eager_loop(flags, arrays):
    """The same training, one plain step after another, up to the first NaN or infinity.

    Returns (its step, counts by tag, the weights after each step from 0 on).
    """
    flag = {"init_stddev": "0.05", "loss": "clipped_cross_entropy"}
    flag |= dict(word.removeprefix("--").split("=") for word in flags)
    images, labels = np.float32(arrays[0].reshape(len(arrays[0]), -1)) / np.float32(255), arrays[1]
    sizes, rate, stddev = [12, 6, 5, 5], float(flag["learning_rate"]), float(flag["init_stddev"])
    batches = data.Batches(9, len(images), 16)
    variables = []
    for i, shape in enumerate(itertools.pairwise(sizes)):
        seed = tf.constant([9, i], tf.int64)
        start = tf.random.stateless_normal(shape, seed, stddev=stddev, alg="philox")
        variables += [tf.Variable(start), tf.Variable(tf.zeros(shape[1]))]
    slots = [[tf.zeros(v.shape), tf.zeros(v.shape)] for v in variables]
    course = [[v.numpy() for v in variables]]
    for t in range(1, STEPS + 1):
        chosen = batches.indices(t, 1)[0]
        y = labels[chosen].astype(np.int32)
        with tf.GradientTape() as tape:
            z = tf.constant(images[chosen])
            for i in (0, 2, 4):
                z = z @ variables[i] + variables[i + 1]
                z = getattr(tf.nn, flag["activation"])(z) if i < 4 else z
            if flag["loss"] == "clipped_cross_entropy":
                picked = tf.reduce_sum(tf.nn.softmax(z) * tf.one_hot(y, 5), 1)
                loss = tf.reduce_sum(-tf.math.log(tf.clip_by_value(picked, 1e-9, 1.0)))
            else:
                loss = tf.reduce_sum(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
                )
        gradients = tape.gradient(loss, variables)
        for w, g, slot in zip(variables, gradients, slots, strict=True):
            if flag["optimizer"] == "sgd":
                w.assign_sub(rate * g)
            elif flag["optimizer"] == "rmsprop":
                slot[0] = 0.9 * slot[0] + 0.1 * g * g
                w.assign_sub(rate * g / (tf.sqrt(slot[0]) + 1e-7))
            else:
                slot[0] += (g - slot[0]) * 0.1
                slot[1] += (g * g - slot[1]) * 0.001
                now = np.float32(rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t))
                w.assign_sub(slot[0] * now / (tf.sqrt(slot[1]) + 1e-7))
        course.append([v.numpy() for v in variables])
        tensors = dict(zip(TAGS, course[-1], strict=True))
        tensors |= {f"{tag}/gradient": g.numpy() for tag, g in zip(TAGS, gradients, strict=True)}
        counts = {tag: int((~np.isfinite(value)).sum()) for tag, value in tensors.items()}
        counts["loss"] = int(not np.isfinite(loss.numpy()))
        if any(counts.values()):
            return t, {tag: count for tag, count in counts.items() if count}, course
    raise AssertionError("this configuration does not diverge")


@pytest.fixture(scope="module")
def diverged(tiny):
    """What the eager loop finds, by kind; done once for each."""
    return functools.cache(lambda kind: eager_loop(DIVERGING[kind], tiny))


def diverging_flags(kind):
    names = ("--optimizer", "--activation")
    return [flag for flag in RUN if not flag.startswith(names)] + DIVERGING[kind]


def assert_nonfinite_entries_are_in_no_bucket(directory, first, counts):
    """With those in the buckets they are all that a tensor has."""
    record = events.read(directory)
    for tag, series in events.histograms(record).items():
        entries = series.values[:, :, 2].sum(axis=1)
        if tag in counts:
            nonfinite = record[f"{tag}/nonfinite"]
            assert (nonfinite.steps, nonfinite.values.tolist()) == ([first], [counts[tag]])
            entries[-1] += counts[tag]
        assert len({*entries}) == 1, tag
        assert series.steps == list(range(1, first + 1))
        assert np.isfinite(series.values).all()


NONFINITE = [
    ("all", ["--watch=", "--xla=off"]),  # the others are compiled
    *(
        pytest.param(kind, more, marks=pytest.mark.slow)
        for kind, more in [
            ("all", ["--watch="]),
            ("all", []),
            ("all", ["--watch=gradients", "--histogram_every=7"]),
            ("loss", ["--watch="]),
            ("loss", []),
            ("weights", ["--watch=updates"]),
        ]
    ),
]


@pytest.mark.parametrize(("kind", "more"), NONFINITE, ids=lambda value: str(value).strip("[]'-="))
@pytest.mark.numbers
def test_the_first_nonfinite_step_is_named_and_ends_the_run(program, diverged, kind, more):
    first, counts, course = diverged(kind)
    assert set(counts) >= {"all": {"loss", *TAGS}, "loss": {"loss"}}.get(kind, {"h1/weights"})
    assert kind == "all" or not set(counts) & {"logits/weights", "logits/bias/gradient"}
    directory = program.new()
    outcome = program.here(directory, *diverging_flags(kind), *more)
    assert (outcome.status, outcome.err) == (3, "")

    result = forks.result(directory)
    assert (result["status"], result["step"]) == ("nonfinite", first)
    # What is watched besides weights and gradients may be named, too.
    named = {tag: note for tag, note in result["nonfinite"].items() if "/update" not in tag}
    assert named == {tag: {"first_step": first, "count": count} for tag, count in counts.items()}
    (line,) = [x for x in outcome.out.splitlines() if x.startswith(f"step {first}: ")]
    assert "NaN or infinity" in line
    found = dict(re.findall(r"(\S+) \((\d+)\)", line))
    assert {tag: int(count) for tag, count in found.items()} == counts
    assert f"nonfinite at step {first}" in outcome.out
    if not result["evaluations"]["step"]:
        assert (result["test_loss"], result["collapsed"]) == (None, None)
    if not more:
        assert_nonfinite_entries_are_in_no_bucket(directory, first, counts)

    steps = {step for step, _ in forks.record(directory) if step}
    assert steps == set(range(1, first + 1))
    # The last checkpoint before that, and nothing that is not finite in it.
    last = max(range(0, first, 6))
    saved = forks.checkpoints(directory)
    assert max(saved) == last
    assert f"from step {last}\n" in outcome.out
    reader = tf.train.load_checkpoint(str(saved[last] / "variables"))
    # Of that step and of no other. (Of a tensor as a whole: Adam divides the size of a gradient
    # out, and with it what tells a small one from its rounding, which is each CPU's own.)
    left = np.concatenate([reader.get_tensor(tag).ravel() for tag in TAGS]).astype(np.float64)
    assert np.isfinite(left).all()
    away = [np.linalg.norm(np.concatenate([*map(np.ravel, w)]) - left) for w in course[:first]]
    assert np.argmin(away) == last and away[last] < 1e-3 * np.linalg.norm(left)

    before = forks.contents(directory)
    again = program.here(directory, *diverging_flags(kind), *more)
    assert again.status == 3
    assert "already" in again.out
    assert forks.contents(directory) == before


@pytest.mark.slow
@pytest.mark.numbers
def test_a_run_that_is_to_continue_goes_to_the_end(program, diverged):
    first, counts, _ = diverged("all")
    directory = program.new()
    outcome = program.here(directory, *diverging_flags("all"), "--on_nonfinite=continue")
    assert (outcome.status, outcome.err) == (3, "")
    result = forks.result(directory)
    assert (result["status"], result["step"], result["test_loss"]) == ("nonfinite", STEPS, None)
    assert result["nonfinite"] == {
        tag: {"first_step": first, "count": count} for tag, count in counts.items()
    }
    assert outcome.out.count("NaN or infinity in") == 1
    assert {step for step, _ in forks.record(directory)} == set(range(STEPS + 1))
    assert max(forks.checkpoints(directory)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--on_nonfinite=continue"]], ids=["stop", "continue"])
def test_a_diverging_run_that_is_killed_ends_as_it_would_have(program, more):
    flags = [*diverging_flags("all"), *more]
    wanted = program.new()
    assert program.train(wanted, flags, keep_all=True).status == 3
    # Before it diverges and, if it is to continue, after it.
    directory, kill_at = program.new(), ["saved", 7 if more else 2]
    assert program.train(directory, flags, kill_at=kill_at).status == -signal.SIGKILL
    assert_nothing_is_lost(directory, wanted)
    outcome = program.train(directory, flags)
    assert (outcome.status, outcome.err) == (3, "")
    assert_same_run(directory, wanted)
    # All but the result was written.
    (directory / "result.json").unlink()
    assert program.train(directory, flags).status == 3
    assert_same_run(directory, wanted)


# ------------------------------------------------------------------ frozen and collapsed


def standstill_lines(outcome):
    return re.findall(r"step (\d+): ((?:collapsed|frozen), .*)", outcome.out)


@pytest.mark.numbers
def test_frozen_and_collapsed_are_said_on_the_spot(tmp_path):
    """The recipe at ten times its learning rate."""
    outcome = programs.train(
        *("--learning_rate=0.1", "--training_steps=60", "--display_step=20"),
        *("--checkpoint_every=20", f"--logdir={tmp_path}", "--run_name=run", "--watch="),
    )
    assert outcome.status == 0
    result = forks.result(tmp_path / "run")
    assert result["status"] == "collapsed"
    assert sorted(result["frozen"]) == sorted(TAGS)
    dataset = data.load()
    constant = dataset.y_test == result["collapsed"]
    assert result["test_correct"] == constant.sum()
    assert result["test_accuracy"] == constant.mean()
    assert result["readme_accuracy"] == pytest.approx(readme_accuracy(constant), abs=1e-12)
    conclusion = outcome.out.splitlines()[-4]
    assert conclusion.startswith("collapsed at step 60")
    assert f"class {result['collapsed']}" in conclusion and "frozen" in conclusion
    # Each is said once, when it is seen first, and not only at the end.
    lines = standstill_lines(outcome)
    assert 1 <= len(lines) <= 2
    step, words = lines[-1]
    assert f"class {result['collapsed']}" in words
    for tag in TAGS:
        assert tag in words
    assert outcome.out.index(f"step {step}: ") < outcome.out.index("collapsed at step 60")
    assert int(step) < 60


@pytest.mark.numbers
def test_a_rate_of_0_freezes_and_does_not_collapse(tmp_path):
    outcome = programs.train(
        *("--learning_rate=0", "--training_steps=30", "--display_step=10", "--n_hidden_1=9"),
        *("--n_hidden_2=8", f"--logdir={tmp_path}", "--run_name=run", "--watch="),
        *("--checkpoint_every=10", "--init_stddev=1", "--xla=off"),
    )
    assert outcome.status == 0
    ((step, words),) = standstill_lines(outcome)
    assert step == "10"
    assert all(tag in words for tag in TAGS)
    assert "collapsed" not in words
    result = forks.result(tmp_path / "run")
    assert (result["collapsed"], sorted(result["frozen"])) == (None, sorted(TAGS))


def test_a_slow_run_is_not_called_collapsed(tmp_path):
    """Of one class for every image as before the first step; but its loss falls."""
    outcome = programs.train(
        *("--learning_rate=0.0001", "--seed=2", "--training_steps=40", "--display_step=20"),
        *("--batch_size=64", "--n_hidden_1=16", "--n_hidden_2=8", "--watch=", "--xla=off"),
        *(f"--logdir={tmp_path}", "--run_name=run"),
    )
    result = forks.result(tmp_path / "run")
    assert outcome.status == 0 and result["test_correct"] in np.bincount(data.load().y_test)
    assert (result["status"], result["collapsed"]) == ("completed", None)
    assert not standstill_lines(outcome)


@pytest.mark.slow
@pytest.mark.numbers
def test_a_run_that_trains_is_not_called_frozen_or_collapsed(long):
    result = forks.result(long)
    assert (result["status"], result["frozen"], result["collapsed"]) == ("completed", [], None)


# ------------------------------------------------------------------ without determinism


@pytest.mark.slow
def test_a_run_without_determinism_runs_and_goes_on(program):
    directory = program.new()
    flags = [*RUN, "--nodeterministic"]
    assert program.train(directory, flags, kill_at=["saved", 5]).status == -signal.SIGKILL
    outcome = program.train(directory, flags)
    assert (outcome.status, outcome.err) == (0, "")
    assert forks.resumed_after(outcome.out) == 18
    result = forks.result(directory)
    assert result["status"] in ("completed", "collapsed")
    assert result["step"] == STEPS
    assert result["config"]["deterministic"] is False
    steps = [step for step, content in forks.record(directory) if b"h1/weights/gradient" in content]
    assert steps == list(range(1, STEPS + 1))
    assert json.loads((directory / "config.json").read_text())["config"] == result["config"]
