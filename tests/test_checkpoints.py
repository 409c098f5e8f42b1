"""Checkpoints: whole, or not believed. The class by itself, on tensors and files made here."""

from __future__ import annotations

import json
import os
import resource
import shutil
from unittest import mock

import forks
import numpy as np
import pytest
import tensorflow as tf

from lab.errors import LabError
from lab.record.checkpoints import Checkpoints

EVENTS = "events.out.tfevents.1700000000.host.1.0.v2"
STATE = {"figures": {"test_loss": 0.1 + 0.2, "collapsed": None}, "steps": [1, 2], "x": 1e-320}


def values(step):
    """Tensors of a step, with all that float32 has: both zeros, a subnormal, NaN, infinity."""
    odd = np.array([0.0, -0.0, 1e-42, np.inf, np.nan, step, -step / 3], np.float32)
    return {"h1/weights": odd.reshape(7, 1), "h1/weights/m": odd[::-1], "h1/bias": odd[5:]}


def save(checkpoints, step):
    arrays = {name: tf.constant(value) for name, value in values(step).items()}
    checkpoints.save(step, arrays, STATE | {"at": step})


def bits(arrays):
    return {name: (value.shape, value.tobytes()) for name, value in arrays.items()}


class Run:
    """A run directory with an event file that is 100 bytes longer at each checkpoint."""

    def __init__(self, path, steps=()):
        self.path = path
        path.mkdir()
        self.events = path / EVENTS
        self.checkpoints = Checkpoints(str(path), "f" * 64)
        for step in steps:
            self.save(step)

    def save(self, step):
        if step:
            with self.events.open("ab") as file:
                file.write(bytes([step % 256]) * 100)
        save(self.checkpoints, step)

    @property
    def steps(self):
        return sorted(forks.checkpoints(self.path))

    def newest(self):
        said = []
        return self.checkpoints.newest(said.append), said


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", (0, 10, 20))


def test_what_was_saved_comes_back_bit_for_bit(run):
    found, said = run.newest()
    assert said == []
    assert found.step == 20
    assert bits(found.tensors) == bits(values(20))
    assert found.state == STATE | {"at": 20}
    assert found.events == {EVENTS: 200}


def test_tensorflow_alone_reads_every_tensor_by_its_name(run):
    for step, folder in forks.checkpoints(run.path).items():
        reader = tf.train.load_checkpoint(str(folder / "variables"))
        names = set(reader.get_variable_to_shape_map())
        assert names == {"h1/weights", "h1/weights/m", "h1/bias", "step"}
        assert reader.get_tensor("step") == step
        found = {name: reader.get_tensor(name) for name in names - {"step"}}
        assert bits(found) == bits(values(step))


def test_the_first_and_the_newest_two_are_kept(tmp_path):
    run = Run(tmp_path / "run")
    kept = []
    for step in (0, 7, 14, 21, 1000, 123456789):
        run.save(step)
        kept.append(run.steps)
    assert kept == [
        [0],
        [0, 7],
        [0, 7, 14],
        [0, 14, 21],
        [0, 21, 1000],
        [0, 1000, 123456789],
    ]
    assert run.newest()[0].step == 123456789
    assert sorted(os.listdir(run.path / "checkpoints")) == [
        path.name for path in forks.checkpoints(run.path).values()
    ]


def test_a_run_that_has_not_begun_has_none(tmp_path):
    run = Run(tmp_path / "run")
    assert run.newest() == (None, [])
    (run.path / "checkpoints" / "unfinished-1").mkdir(parents=True)
    assert run.newest() == (None, [])


def test_events_are_cut_back_to_the_checkpoint(run):
    before = run.events.read_bytes()
    found, _ = run.newest()
    with run.events.open("ab") as file:
        file.write(b"later")
    later = run.path / EVENTS.replace("1700000000", "1700000009")
    later.write_bytes(b"later")
    (run.path / "config.json").write_text("{}")
    run.checkpoints.cut_events(found)
    assert run.events.read_bytes() == before
    assert not later.exists()
    assert (run.path / "config.json").read_text() == "{}"


def test_what_another_process_left_half_written_is_cleared_away(run):
    left = run.path / "checkpoints" / "unfinished-4711"
    left.mkdir()
    (left / "variables.index").write_text("half")
    run.save(30)
    assert not left.exists()
    assert run.newest()[0].step == 30


def test_a_checkpoint_is_synced_before_it_has_its_name_and_its_folder_after(run):
    """Else a power cut could leave the name without the content."""
    order, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(handle):
        order.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def noted_rename(source, target):
        order.append("rename")
        rename(source, target)

    with mock.patch.object(os, "fsync", noted_fsync), mock.patch.object(os, "rename", noted_rename):
        run.save(30)
    before, after = order[: order.index("rename")], order[order.index("rename") + 1 :]
    folder = run.path / "checkpoints"
    names = [os.path.basename(path) for path in before]
    assert {"manifest.json", "variables.index", EVENTS} <= set(names)
    assert [name for name in names if name.startswith("variables.data")]
    assert names[-1].startswith("unfinished")
    assert after == [str(folder)]


# ------------------------------------------------------------------ damage

FILES = ["manifest.json", "variables.index", "variables.data-00000-of-00001"]


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path):
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGES = {
    "missing": os.remove,
    "empty": lambda path: os.truncate(path, 0),
    "half": halve,
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a byte long": lengthen,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "first bit": lambda path: flip(path, 0, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2, 3),
    "last bit": lambda path: flip(path, -1, 7),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
FOLDER_DAMAGES = {
    "folder emptied": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "folder a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "event file missing": lambda folder: os.remove(folder.parents[1] / EVENTS),
    "event file short": lambda folder: os.truncate(folder.parents[1] / EVENTS, 199),
}
MATRIX = {
    f"{name}: {damage}": (lambda folder, name=name, do=do: do(folder / name))
    for name in FILES
    for damage, do in DAMAGES.items()
} | FOLDER_DAMAGES
ODD_MANIFESTS = ["null", "[]", "{}", "4", '"text"', '{"sha256": "0"}']
MATRIX |= {
    f"manifest.json: {text[:20]}": (
        lambda folder, text=text: (folder / "manifest.json").write_text(text)
    )
    for text in ODD_MANIFESTS
}


@pytest.mark.parametrize("damage", MATRIX)
def test_a_damaged_checkpoint_is_passed_over_in_a_line(run, damage):
    MATRIX[damage](run.path / "checkpoints" / "step-000000020")
    before = forks.contents(run.path)
    wanted = 0 if damage == "event file missing" else 10  # only the first does without it
    found, said = run.newest()
    assert forks.contents(run.path) == before  # looking changes nothing
    assert found.step == wanted
    assert bits(found.tensors) == bits(values(wanted))
    assert found.state["at"] == wanted
    assert "step-000000020" in said[0]
    assert f"step {wanted} " in said[-1]
    assert not [line for line in said if "\n" in line]
    if damage == "folder a file":  # nobody's to delete
        return
    # The run goes on, and its next checkpoint takes the place of the damaged one.
    run.checkpoints.cut_events(found)
    run.events = run.path / EVENTS.replace("1700000000", "1700000009")
    for step in (15, 20):
        run.save(step)
        found, _ = run.newest()
        assert found.step == step
        assert bits(found.tensors) == bits(values(step))
    assert forks.tensors(run.path / "checkpoints" / "step-000000020")


def test_a_missing_newest_checkpoint_is_simply_not_the_newest(run):
    shutil.rmtree(run.path / "checkpoints" / "step-000000020")
    found, said = run.newest()
    assert (found.step, said) == (10, [])


@pytest.mark.parametrize(
    "damage",
    ["manifest.json: missing", "variables.index: half", *FOLDER_DAMAGES],
)
def test_where_all_are_damaged_the_run_is_refused_and_left_as_it_is(run, damage):
    for folder in forks.checkpoints(run.path).values():
        if damage.startswith("event file"):
            (folder / "manifest.json").unlink()
        else:
            MATRIX[damage](folder)
    if damage.startswith("event file"):
        MATRIX[damage](folder)
    before = forks.contents(run.path)
    with pytest.raises(LabError) as caught:
        run.newest()
    assert forks.contents(run.path) == before
    for step in (0, 10, 20):
        assert f"step-{step:09d}" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_lost_all_its_checkpoints_is_refused(run):
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(LabError, match="no checkpoint"):
        run.newest()
    assert run.events.stat().st_size == 200


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_gives_other_values(run, name):
    """Some places in each file, all eight bits: passed over, or without any effect (an `e` of a
    number that becomes an `E`), but never something else."""
    path = run.path / "checkpoints" / "step-000000020" / name
    whole, straight = path.read_bytes(), run.newest()[0]
    passed = 0
    for place in range(0, len(whole), 1 + len(whole) // 13):
        for bit in range(8):
            flip(path, place, bit)
            found, _ = run.newest()
            if found.step == 10:
                passed += 1
            else:
                assert (found.step, found.state, found.events) == (
                    straight.step,
                    straight.state,
                    straight.events,
                ), (place, bit)
                assert bits(found.tensors) == bits(straight.tensors), (place, bit)
            path.write_bytes(whole)
    assert passed > 50


def test_a_checkpoint_of_another_run_is_not_used(run, tmp_path):
    other = Run(tmp_path / "other", (0, 10, 20))
    stranger = Checkpoints(str(other.path), "e" * 64)
    with pytest.raises(LabError, match="another run"):
        stranger.newest(pytest.fail)
    # One that was copied in is passed over.
    save(stranger, 30)
    shutil.copytree(
        other.path / "checkpoints" / "step-000000030", run.path / "checkpoints" / "step-000000030"
    )
    found, said = run.newest()
    assert found.step == 20
    assert "another run" in said[0]


@pytest.mark.parametrize("name", ["step-000000020.bak", "step-old", "step-", "notes.txt"])
def test_what_others_put_beside_the_checkpoints_stays_and_does_no_harm(run, name):
    """A clear refusal would do, too; a ValueError would not."""
    stranger = run.path / "checkpoints" / name
    stranger.write_text("mine")
    try:
        found, _ = run.newest()
        assert found.step == 20
        run.save(30)
        run.save(40)
    except LabError as error:
        assert name in str(error)
    assert stranger.read_text() == "mine"
    (run.path / "checkpoints" / name).unlink()
    assert run.newest()[0].step >= 20


# ------------------------------------------------------------------ saves that fail


def assert_as_before(run, before):
    """Asserts that nothing is changed, and that what is there still loads."""
    assert forks.contents(run.path) == before
    found, said = run.newest()
    assert (found.step, said) == (20, [])
    assert bits(found.tensors) == bits(values(20))


@pytest.mark.parametrize("size", [0, 50, 150, 400])
def test_a_save_that_finds_no_room_leaves_all_as_it_was(run, size):
    folder = run.path / "checkpoints" / "step-000000020"
    sizes = sorted(path.stat().st_size for path in folder.iterdir())
    assert sizes[-1] > 400  # so that each of the limits stops it, not all at the same file
    before = forks.contents(run.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(LabError) as caught:
            save(run.checkpoints, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 30" in str(caught.value)
    assert str(run.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_as_before(run, before)
    run.save(30)
    assert run.newest()[0].step == 30


@pytest.mark.parametrize("name", ["mkdir", "rename", "fsync"])
def test_a_save_that_the_system_refuses_leaves_all_as_it_was(run, name):
    before = forks.contents(run.path)
    with (
        mock.patch.object(os, name, side_effect=OSError(28, "No space left on device")),
        pytest.raises(LabError, match=r"step 30 .*No space left"),
    ):
        save(run.checkpoints, 30)
    assert_as_before(run, before)


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    run = Run(tmp_path / "run")
    (run.path / "checkpoints").write_text("mine")
    with pytest.raises(LabError, match="checkpoints"):
        save(run.checkpoints, 0)
    assert (run.path / "checkpoints").read_text() == "mine"


def test_a_save_that_ends_anywhere_leaves_the_newest_whole(tmp_path):
    """Ended before each call that changes the file system, in one process: no code that would
    clean up after an error may be what keeps the earlier checkpoints good."""
    names = ("mkdir", "rename", "fsync", "rmdir", "unlink")
    count = 0
    while True:
        count += 1
        run = Run(tmp_path / str(count), (0, 10, 20))
        with forks.killed_at(count, names):
            try:
                save(run.checkpoints, 30)
                ended = False
            except forks.Killed:
                ended = True
        found, said = run.newest()
        assert said == []
        assert found.step in (20, 30)
        assert bits(found.tensors) == bits(values(found.step))
        if not ended:
            assert found.step == 30
            break
        save(run.checkpoints, 30)
        assert run.newest()[0].step == 30
        assert not list(run.path.rglob("unfinished*"))
    assert count > 10


# ------------------------------------------------------------------ those of a real run


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run of the program on MNIST, with more checkpoints than it keeps."""
    import programs

    logdir = tmp_path_factory.mktemp("real")
    outcome = programs.train(
        *(f"--logdir={logdir}", "--run_name=run", "--optimizer=adadelta", "--seed=3"),
        *("--training_steps=25", "--display_step=20", "--checkpoint_every=6", "--n_hidden_1=9"),
        *("--n_hidden_2=8", "--watch=", "--xla=off"),
    )
    assert outcome.status == 0, outcome.err
    return logdir / "run"


def test_a_run_keeps_the_first_the_last_and_the_one_before(real):
    assert sorted(forks.checkpoints(real)) == [0, 24, 25]


def test_a_run_begins_at_the_weights_of_the_initializer(real):
    reader = tf.train.load_checkpoint(str(real / "checkpoints" / "step-000000000" / "variables"))
    shapes = {"h1": (784, 9), "h2": (9, 8), "logits": (8, 10)}
    for i, (layer, shape) in enumerate(shapes.items()):
        wanted = tf.random.stateless_normal(
            shape, tf.constant([3, i], tf.int64), stddev=0.05, alg="philox"
        )
        np.testing.assert_array_equal(reader.get_tensor(f"{layer}/weights"), wanted)
        np.testing.assert_array_equal(reader.get_tensor(f"{layer}/bias"), np.zeros(shape[1]))
        for name, size in ((f"{layer}/weights", shape), (f"{layer}/bias", shape[1:])):
            for slot in ("a", "u"):
                np.testing.assert_array_equal(reader.get_tensor(f"{name}/{slot}"), np.zeros(size))
    assert reader.get_tensor("step") == 0
    assert len(reader.get_variable_to_shape_map()) == 6 * 3 + 1


def test_a_run_ends_at_the_weights_of_its_result(real):
    """The figures of result.json once more, from the checkpoint's tensors alone."""
    import programs

    from lab import data

    reader = tf.train.load_checkpoint(str(real / "checkpoints" / "step-000000025" / "variables"))
    assert reader.get_tensor("step") == 25
    dataset = data.load()
    x = dataset.x_test / 255.0
    for layer in ("h1", "h2", "logits"):
        z = x @ np.float64(reader.get_tensor(f"{layer}/weights"))
        z += reader.get_tensor(f"{layer}/bias")
        x = 1 / (1 + np.exp(-z))
    log_softmax = z - np.log(np.exp(z).sum(1, keepdims=True))
    loss = -log_softmax[np.arange(len(z)), dataset.y_test].mean()
    result = programs.result(real)
    assert result["test_correct"] == (z.argmax(1) == dataset.y_test).sum()
    assert result["test_loss"] == pytest.approx(loss, rel=1e-6)
    manifest = json.loads((real / "checkpoints/step-000000025/manifest.json").read_text())
    assert manifest["fingerprint"] == result["fingerprint"]
    assert manifest["step"] == 25
