"""A run that was ended at any moment goes on to exactly the result that it would have had.

The program runs in processes of its own, which are killed in a loop, in a save, in a flush; what
they leave is compared with the run of the same command that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
from unittest import mock

import events
import forks
import numpy as np
import pytest
import tensorflow as tf
from forks import (
    EVERY,
    HEAVY,
    LONG,
    RUN,
    STEPS,
    assert_goes_on,
    assert_nothing_is_lost,
    assert_one_line,
    assert_same_record,
    assert_same_run,
)
from programs import serving, train

from lab.errors import LabError
from lab.record.directory import RunDirectory

# ------------------------------------------------------------------ what is compared


@pytest.mark.slow
def test_the_long_undisturbed_run_is_what_it_should_be(long):
    assert sorted(forks.checkpoints(long)) == [*range(0, 400, 30), 400]


def test_the_undisturbed_run_is_what_it_should_be(whole):
    """Else the comparisons below would compare nothing."""
    assert sorted(forks.checkpoints(whole)) == list(range(0, STEPS + 1, EVERY))
    steps = {step: folder for step, folder in forks.checkpoints(whole).items() if step}
    seen = [forks.tensors(folder) for folder in steps.values()]
    assert len(seen[0]) == 6 * 3 + 1  # weights and biases with Adam's m and v, and the step
    for name in seen[0]:
        assert len({tensors[name] for tensors in seen}) == len(seen), name
    record = forks.record(whole)
    assert {step for step, _ in record} == set(range(STEPS + 1))
    assert len(record) > STEPS
    assert forks.result(whole)["evaluations"]["step"] == [10, 20, 30, 40, 48]


@pytest.mark.parametrize("what", ["record", "weights", "slots", "result"])
def test_the_comparison_sees_a_difference(program, whole, what):
    other = program.copy(whole)
    assert_same_run(other, whole)
    if what == "record":
        (path,) = other.glob("events*")
        os.truncate(path, path.stat().st_size - 30)
    elif what == "result":
        path = other / "result.json"
        path.write_text(path.read_text().replace('"step": 48', '"step": 47'))
    else:
        folder = forks.checkpoints(other)[STEPS]
        tensors = tf.train.load_checkpoint(str(folder / "variables"))
        names = sorted(tensors.get_variable_to_shape_map())
        values = [tensors.get_tensor(name).copy() for name in names]
        changed = names.index("h2/bias" if what == "weights" else "h2/bias/v")
        values[changed][1] = np.nextafter(values[changed][1], np.float32(9))
        tf.raw_ops.SaveV2(
            prefix=str(folder / "variables"),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=values,
        )
    with pytest.raises(AssertionError):
        assert_same_run(other, whole)


# ------------------------------------------------------------------ killed


@pytest.mark.parametrize(
    ("kind", "count"), [("os.rmdir", 1), pytest.param("fsync", 30, marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_to_the_same_result(program, whole, kind, count):
    directory = program.new()
    outcome = program.train(directory, kill_at=[kind, count])
    assert outcome.status == -signal.SIGKILL, "the run ended before that moment"
    assert_nothing_is_lost(directory, whole)
    step = max(forks.checkpoints(directory), default=None)
    out = assert_goes_on(program, directory, whole)
    # It went on, and did not begin again.
    assert forks.resumed_after(out) == step
    # The same tensors are the same files.
    folder, other = (forks.checkpoints(run)[STEPS] for run in (directory, whole))
    for path in folder.glob("variables.*"):
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.slow
def test_a_name_that_tensorflow_takes_for_a_pattern_loses_no_run(program):
    """It saves checkpoints there but cannot load them: a run must be refused, or go on."""
    name = "lr=[0.1]"
    directory = program.new().parent / name
    outcome = program.train(directory)
    if outcome.status == 1:
        assert_one_line(outcome, 1, name)
        return
    assert outcome.status == 0
    (directory / "result.json").unlink()
    outcome = program.train(directory)
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.slow
def test_a_run_that_has_its_last_checkpoint_but_no_result_gets_it(program, whole):
    directory = program.copy(whole)
    (directory / "result.json").unlink()
    out = assert_goes_on(program, directory, whole)
    assert forks.resumed_after(out) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"status": "comp', "null"])
def test_a_damaged_result_is_made_again(program, whole, content):
    directory = program.copy(whole)
    (directory / "result.json").write_text(content)
    assert_goes_on(program, directory, whole)


def test_a_finished_run_is_left_as_it_is(program, whole):
    directory = program.copy(whole)
    before = forks.contents(directory)
    outcome = program.here(directory, *RUN)
    assert (outcome.status, outcome.err) == (0, "")
    assert "already" in outcome.out
    assert forks.contents(directory) == before


@pytest.mark.slow
def test_killed_before_every_change_of_a_file(program, whole):
    """The first process is killed before its first change of a file, the next one before its
    second, and so on until one comes through: in starts, in saves, between them."""
    directory, lives = program.new(), 0
    while True:
        lives += 1
        outcome = program.train(directory, kill_at=["any", lives])
        if outcome.status == 0:
            break
        assert (outcome.status, outcome.err) == (-signal.SIGKILL, ""), lives
        assert_nothing_is_lost(directory, whole)
    assert lives > 25
    assert_same_run(directory, whole)


@pytest.mark.slow
def test_killed_at_every_kind_of_change(program, whole):
    """Those that come late in a run, above all: deleting what is no longer needed, cutting."""
    points = [(kind, n) for kind in ("os.remove", "os.rmdir") for n in (1, 2, 3, 4)]
    points += [("saved", 3), ("os.truncate", 1)]  # only a record that was begun is cut
    points += [("saved", 2), ("os.mkdir", 2), ("open", 5), ("os.rename", 2), ("fsync", 9)]
    directory, hits = program.new(), set()
    for kind, count in points:
        outcome = program.train(directory, kill_at=[kind, count])
        assert outcome.status in (0, -signal.SIGKILL), outcome
        if outcome.status == 0:
            assert_same_run(directory, whole)
            directory = program.new()
        else:
            hits.add(kind)
            assert_nothing_is_lost(directory, whole)
    assert hits == {kind for kind, _ in points}
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(program, whole):
    """SIGXFSZ kills a process in the very write that passes the limit: in config.json, or in
    a flush, which leaves a record torn at that byte."""
    directory = program.new()
    random_ = random.Random(0)
    sizes = [0, 100, *(random_.randrange(20_000, 200_000) for _ in range(9))]
    torn = 0
    for size in sizes:
        before = set(directory.glob("events*"))
        outcome = program.train(directory, file_size=size, die_at_file_size=True)
        if outcome.status == 0:
            assert_same_run(directory, whole)
            directory = program.new()
            continue
        assert outcome.status == -signal.SIGXFSZ, outcome
        torn += size in [path.stat().st_size for path in set(directory.glob("events*")) - before]
        assert_nothing_is_lost(directory, whole)
    assert torn > 5
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_killed_while_tensorflow_writes_a_checkpoint(program):
    large = [*HEAVY, "--n_hidden_1=200", "--n_hidden_2=200"]  # a checkpoint has 525,660 bytes
    whole, directory = program.undisturbed(large), program.new()
    for life, size in enumerate((400_000, 460_000, 520_000)):
        outcome = program.train(directory, large, kill_at=["saved", 2 + (life > 0)])
        assert outcome.status == -signal.SIGKILL
        outcome = program.train(directory, large, file_size=size, die_at_file_size=True)
        assert outcome.status == -signal.SIGXFSZ
        (left,) = (directory / "checkpoints").glob("unfinished-*/variables*data*")
        assert left.stat().st_size == size
        assert_nothing_is_lost(directory, whole)
    assert_goes_on(program, directory, whole, large)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_killed_at_ten_random_moments(program, devices):
    forks.assert_survives_kills(program, [*LONG, f"--devices={devices}"], 10, random.Random(20))


# ------------------------------------------------------------------ what TensorBoard sees


@pytest.fixture(scope="module")
def pieced(program, whole):
    """A run in four pieces, each of which recorded more than its last checkpoint."""
    directory = program.new()
    for kill_at in (["saved", 3], ["saved", 2], ["os.rename", 4]):
        assert program.train(directory, kill_at=kill_at).status == -signal.SIGKILL
    assert_goes_on(program, directory, whole)
    assert len(list(directory.glob("events*"))) > 2
    return directory


def steps_of_tags(directory):
    """Which steps each scalar and histogram tag must have, from the run's own words."""
    layers = [f"{layer}/{kind}" for layer in ("h1", "h2", "logits") for kind in ("weights", "bias")]
    every, evaluated = list(range(1, STEPS + 1)), [10, 20, 30, 40, 48]
    scalars = {"loss": every, "accuracy": every, "gradient/norm": every}
    scalars |= {"test-loss": evaluated, "test-accuracy": evaluated}
    histograms = [tag + suffix for tag in layers for suffix in ("", "/gradient")]
    for tag in layers:
        scalars |= {f"{tag}{kind}/norm": every for kind in ("", "/gradient", "/update")}
        scalars |= {f"{tag}/update/ratio": every, f"{tag}/distance": evaluated}
    return scalars, dict.fromkeys(histograms, every)


@pytest.mark.slow
def test_every_tag_holds_every_step_once_for_tensorboards_python(pieced):
    from tensorboard.backend.event_processing import event_multiplexer

    multiplexer = event_multiplexer.EventMultiplexer(
        size_guidance={event_multiplexer.event_accumulator.TENSORS: 0}
    )
    multiplexer.AddRunsFromDirectory(str(pieced))
    multiplexer.Reload()
    scalars, histograms = steps_of_tags(pieced)
    (run,) = multiplexer.Runs()
    for tag, steps in (scalars | histograms).items():
        assert [event.step for event in multiplexer.Tensors(run, tag)] == steps, tag
    known = set(multiplexer.Runs()[run]["tensors"])
    assert {tag for tag in known if not tag.startswith("_hparams_")} == {
        *scalars,
        *histograms,
        "config",
    }


@pytest.mark.slow
@pytest.mark.parametrize("fast", ["true", "false"])
def test_every_tag_holds_every_step_once_in_a_tensorboard(pieced, fast):
    """With --load_fast=true the files are read by the data server, which is written in Rust."""
    command = [sys.executable, "-m", "tensorboard.main", f"--load_fast={fast}"]
    command += ["--samples_per_plugin=scalars=1000,histograms=1000", f"--logdir={pieced}"]
    scalars, histograms = steps_of_tags(pieced)
    with serving(command, ".", STEPS) as board:
        for tag, steps in scalars.items():
            points = board.get("data/plugin/scalars/scalars", run=".", tag=tag)
            assert [point[1] for point in points] == steps, tag
        for tag, steps in histograms.items():
            points = board.get("data/plugin/histograms/histograms", run=".", tag=tag)
            assert [point[1] for point in points] == steps, tag
        assert set(board.get("data/plugin/histograms/tags")["."]) == set(histograms)


# ------------------------------------------------------------------ asked to stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_run_that_is_asked_to_stop_saves_where_it_is(program, long, number, status):
    directory = program.new()
    child = program.start(directory, LONG)
    child.wait_for("step     50")
    os.kill(child.pid, number)
    outcome = child.wait()
    assert (outcome.status, outcome.err) == (status, "")
    result = forks.result(directory)
    step = result["step"]
    assert result["status"] == "interrupted"
    assert 50 <= step < 400
    assert f"interrupted at step {step}" in outcome.out
    newest = forks.checkpoints(directory)[step]
    assert step == max(forks.checkpoints(directory))
    assert forks.tensors(newest)["step"] == np.int64(step).tobytes()
    record = events.read(directory)
    for tag in ("loss", "h1/weights", "logits/bias/gradient"):
        assert record[tag].steps == list(range(1, step + 1))
    assert record["test-accuracy"].steps == result["evaluations"]["step"]
    out = assert_goes_on(program, directory, long, LONG)
    assert forks.resumed_after(out) == step
    assert f"step {50:>6}  " not in out


@pytest.mark.slow
def test_a_run_that_is_interrupted_before_its_first_evaluation(program, whole):
    directory = program.new()
    outcome = program.train(directory, kill_at=["saved", 1, signal.SIGINT])
    assert (outcome.status, outcome.err) == (130, "")
    result = forks.result(directory)
    assert result["status"] == "interrupted" and result["step"] < 10
    assert result["test_accuracy"] is None
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_a_signal_in_a_save_stops_after_it(program, whole):
    directory = program.new()
    outcome = program.train(directory, kill_at=["saved", 3, signal.SIGTERM])
    assert (outcome.status, outcome.err) == (143, "")
    assert max(forks.checkpoints(directory)) == forks.result(directory)["step"] == 12
    assert_goes_on(program, directory, whole)


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(program, long):
    directory = program.new()
    child = program.start(directory, LONG)
    child.wait_for("step     50")
    os.kill(child.pid, signal.SIGSTOP)  # so that both signals are there when it looks
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGTERM)
    os.kill(child.pid, signal.SIGCONT)
    outcome = child.wait()
    assert outcome.status in (130, 143)  # of the second one: their order is the system's
    assert not (directory / "result.json").exists()
    assert "interrupted" not in outcome.out  # as after a single one
    assert_goes_on(program, directory, long, LONG)


# ------------------------------------------------------------------ damaged checkpoints


def _flip_a_bit(folder):
    path = folder / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# Of what test_checkpoints.py does to checkpoints, one for each file and one for the folder.
DAMAGES = {
    "a bit of the data": _flip_a_bit,
    "manifest.json missing": lambda folder: (folder / "manifest.json").unlink(),
    "variables.index cut": lambda folder: os.truncate(folder / "variables.index", 40),
    "folder emptied": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_a_few_steps_and_no_more(program, whole, killed_at_24, damage):
    directory = killed_at_24
    DAMAGES[damage](forks.checkpoints(directory)[24])
    out = assert_goes_on(program, directory, whole)
    assert forks.passed_over(out) == [24]
    assert forks.resumed_after(out) == 18


@pytest.mark.slow
def test_a_missing_checkpoint_costs_a_few_steps_and_no_more(program, whole, killed_at_24):
    directory = killed_at_24
    shutil.rmtree(forks.checkpoints(directory)[24])
    assert forks.resumed_after(assert_goes_on(program, directory, whole)) == 18


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(24,), (18, 24)])
def test_the_last_resort_is_the_first_checkpoint(program, whole, killed_at_24, steps):
    """That is no silent start from scratch: it is said."""
    directory = killed_at_24
    (path,) = directory.glob("events*")
    manifests = {
        step: json.loads((folder / "manifest.json").read_text())
        for step, folder in forks.checkpoints(directory).items()
    }
    # Shorter than it was at these steps, though it holds all of those before.
    os.truncate(path, manifests[min(steps)]["events"][path.name] - 1)
    out = assert_goes_on(program, directory, whole)
    assert forks.passed_over(out) == sorted(steps, reverse=True)
    assert forks.resumed_after(out) == max({0, 18, 24} - set(steps))


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_checkpoint_is_whole_the_run_is_refused(program, killed_at_24, damage):
    directory = killed_at_24
    for folder in forks.checkpoints(directory).values():
        DAMAGES[damage](folder)
    before = forks.contents(directory)
    outcome = program.here(directory, *RUN)
    assert_one_line(
        outcome, 1, directory, "step-000000000", "step-000000018", "step-000000024", "--overwrite"
    )
    assert outcome.out == ""
    assert forks.contents(directory) == before


def test_checkpoints_that_are_gone_and_an_event_file_that_is_gone_are_refused(
    program, killed_at_24
):
    directory = killed_at_24
    shutil.rmtree(directory / "checkpoints")
    before = forks.contents(directory)
    assert_one_line(program.here(directory, *RUN), 1, directory, "--overwrite")
    assert forks.contents(directory) == before

    directory = program.killed_at_24()
    shutil.rmtree(forks.checkpoints(directory)[0])
    (path,) = directory.glob("events*")
    path.unlink()
    before = forks.contents(directory)
    outcome = program.here(directory, *RUN)
    assert_one_line(outcome, 1, directory, "step-000000024", path.name, "--overwrite")
    assert forks.contents(directory) == before


# ------------------------------------------------------------------ another command


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--learning_rate=0.02", ["learning_rate", "0.01", "0.02"]),
        ("--display_step=9", ["display_step", "10", "9"]),
        ("--watch=weights", ["watch", "gradients", "['weights']"]),
        ("--training_steps=49", ["training_steps", "48", "49"]),
        ("--on_nonfinite=continue", ["on_nonfinite", "stop", "continue"]),
        ("--nodeterministic", ["deterministic", "True", "False"]),
        ("--histogram_every=2", ["histogram_every", "1", "2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_configuration_is_refused(program, killed_at_24, flag, words):
    before = forks.contents(killed_at_24)
    outcome = program.here(killed_at_24, *RUN, flag)
    assert_one_line(outcome, 1, killed_at_24, *words, "--overwrite", "--run_name")
    # It names what differs and nothing else.
    assert outcome.err.count(" was ") == 1
    assert forks.contents(killed_at_24) == before


def test_every_difference_is_named(program, killed_at_24, tmp_path, tiny):
    arrays = list(tiny)
    arrays[3] = arrays[3][::-1]
    other = forks.write_idx(tmp_path / "other", arrays)
    flags = [*RUN, "--seed=10", "--optimizer=adagrad", *program.place(killed_at_24)]
    outcome = train(*flags, f"--data={other}")
    assert_one_line(outcome, 1, "seed was 9, is 10", "optimizer was adam, is adagrad", "data was ")


def test_settings_that_decide_nothing_may_change(program, whole, killed_at_24, tmp_path, tiny):
    """Neither may the place of the data, as long as they are the same. This process has other
    devices than the one that was killed, and has made other functions before."""
    directory = killed_at_24
    elsewhere = forks.write_idx(tmp_path / "elsewhere", tiny)
    flags = [*RUN, "--steps_per_loop=7", "--checkpoint_every=5"]
    outcome = train(*flags, *program.place(directory), f"--data={elsewhere}")
    assert (outcome.status, outcome.err) == (0, "")
    assert forks.resumed_after(outcome.out) == 24
    assert max(forks.checkpoints(directory)) == STEPS
    assert forks.tensors(forks.checkpoints(directory)[STEPS]) == forks.tensors(
        forks.checkpoints(whole)[STEPS]
    )
    assert_same_record(forks.record(directory), forks.record(whole))
    config = {"data": None}
    found, wanted = forks.result(directory), forks.result(whole)
    assert found["config"] | config == wanted["config"] | config
    assert found | {"config": 0} == wanted | {"config": 0}


@pytest.mark.slow
def test_overwrite_starts_again(program, whole, killed_at_24):
    directory = killed_at_24
    names = {path.name for path in directory.glob("events*")}
    outcome = program.train(directory, [*RUN, "--overwrite"])
    assert (outcome.status, outcome.err) == (0, "")
    assert forks.resumed_after(outcome.out) is None
    assert_same_run(directory, whole)
    assert not names & {path.name for path in directory.glob("events*")}


@pytest.mark.slow
def test_overwrite_takes_another_configuration(program, whole):
    directory = program.new()
    other = [*RUN, "--learning_rate=0.02", "--watch="]
    assert program.train(directory, other, kill_at=["saved", 3]).status == -signal.SIGKILL
    assert_one_line(program.here(directory, *RUN), 1, "learning_rate was 0.02, is 0.01")
    outcome = program.train(directory, [*RUN, "--overwrite"])
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_run(directory, whole)


@pytest.mark.slow
def test_overwrite_that_is_killed_can_be_given_again(program, whole):
    """And a run of which only a part has been deleted never passes for a whole one."""
    for count in (4, 11):
        directory = program.copy(whole)
        flags = [*RUN, "--overwrite"]
        killed = program.train(directory, flags, kill_at=["os.remove", count])
        assert killed.status == -signal.SIGKILL
        half = forks.contents(directory)
        outcome = program.here(directory, *RUN)
        assert_one_line(outcome, 1, "has been partly deleted: --overwrite deletes the rest")
        assert forks.contents(directory) == half
        outcome = program.train(directory, flags)
        assert (outcome.status, outcome.err) == (0, ""), count
        assert_same_run(directory, whole)


def test_a_run_that_is_refused_keeps_no_lock(tmp_path):
    """Not even while its error is kept, as a notebook does."""
    path = str(tmp_path / "run")
    RunDirectory(path, {"seed": 1}, "f").close()
    with pytest.raises(LabError, match="another run") as refused:
        RunDirectory(path, {"seed": 2}, "g")
    RunDirectory(path, {"seed": 2}, "g", overwrite=True).close()
    assert refused.value.__traceback__


@pytest.mark.parametrize("seed", range(2))
def test_overwrite_may_end_at_any_moment(tmp_path, seed):
    """Whatever the order in which a file system names the files of a folder."""
    random_, listdir = random.Random(seed), os.listdir
    path = tmp_path / "run"
    names = ["events.out.tfevents.1.h"]
    names += [f"checkpoints/step-{step:09d}/manifest.json" for step in (0, 5, 10)]

    def shuffled(folder):
        found = listdir(folder)
        return random_.sample(found, len(found))

    deletions = ("remove", "unlink", "rmdir")

    def take(**options):
        return RunDirectory(str(path), {"seed": 1}, "f", **options)

    for moment in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        run = take()
        run.write("result.json", {"status": "completed"})
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("all of it")
        run.close()
        with mock.patch.object(os, "listdir", shuffled), forks.killed_at(moment, deletions):
            try:
                take(overwrite=True).close()
                break
            except forks.Killed:
                pass
        with contextlib.suppress(LabError):
            run = take()
            whole = all((path / name).exists() for name in names)
            assert whole or not (path / "result.json").exists(), "a part passes for the whole"
            run.close()
        run = take(overwrite=True)
        assert not (path / "result.json").exists()
        run.close()
        assert sorted(os.listdir(path)) == ["config.json", "lock"]
    assert moment > 8
