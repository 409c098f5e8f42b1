"""Reading a run: event files against TensorBoard's own reader, whole, cut and damaged."""

import pathlib
import shutil

import events
import forks
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader

import lab
from lab.errors import LabError
from lab.record import event_reader
from lab.record.directory import event_files


@pytest.fixture(scope="module")
def run(whole):
    """A run of 48 steps, which other modules compare with; read only."""
    return whole


def test_every_value_is_tensorboards(run):
    reader, theirs = lab.open_run(run), events.read(run)
    shown = {tag for tag, one in theirs.items() if one.plugin in ("scalars", "histograms")}
    assert {*reader.tags} == shown and len(shown) > 30
    for tag in shown:
        one = theirs[tag]
        if one.plugin == "scalars":
            steps, values = reader.scalar(tag)
            np.testing.assert_array_equal(values, one.values)
        else:
            steps, edges, counts = reader.histogram(tag)
            np.testing.assert_array_equal(edges[:, :-1], one.values[:, :, 0])
            np.testing.assert_array_equal(edges[:, 1:], one.values[:, :, 1])
            np.testing.assert_array_equal(counts, one.values[:, :, 2])
        assert steps.tolist() == one.steps


def test_scalars_as_a_table(run):
    reader = lab.open_run(run)
    table = reader.to_pandas()
    for tag in ("loss", "test-accuracy", "h1/weights/norm"):
        steps, values = reader.scalar(tag)
        column = table[tag].dropna()
        assert column.index.tolist() == steps.tolist() and column.tolist() == values.tolist()
    assert table.index.tolist() == list(range(1, forks.STEPS + 1))


def test_config_result_and_weights(run):
    reader = lab.open_run(str(run))
    assert reader.config["optimizer"] == "adam"
    assert reader.result["step"] == forks.STEPS
    assert list(reader.checkpoints) == sorted(forks.checkpoints(run))
    loader = tf.train.load_checkpoint(str(forks.checkpoints(run)[24] / "variables"))
    weights = reader.weights(24)
    assert {"h1/weights", "logits/bias/m"} <= weights.keys()
    for tag, value in weights.items():
        np.testing.assert_array_equal(value, loader.get_tensor(tag))
    with pytest.raises(LabError, match="step 25"):
        reader.weights(25)


def test_a_file_that_is_cut_anywhere_is_read_up_to_there(run, tmp_path):
    """As it is while a run writes."""
    (path,) = event_files(str(run))
    content, whole = pathlib.Path(path).read_bytes(), list(event_reader.records(path))
    assert whole == list(event_file_loader.RawEventFileLoader(path).Load())
    copy = tmp_path / "events.out.tfevents.1.v2"
    ends = np.cumsum([16 + len(record) for record in whole])
    random = np.random.default_rng(0)
    for size in [0, 5, 12, *random.integers(0, len(content), 20), *(ends[:3] - 1), *ends[:3]]:
        copy.write_bytes(content[:size])
        assert list(event_reader.records(str(copy))) == whole[: (ends <= size).sum()]


def test_a_damaged_record_is_the_end(run, tmp_path):
    (path,) = event_files(str(run))
    content, whole = pathlib.Path(path).read_bytes(), list(event_reader.records(path))
    ends = np.cumsum([16 + len(record) for record in whole])
    copy = tmp_path / "events.out.tfevents.1.v2"
    for place in np.random.default_rng(1).integers(ends[3], len(content), 20):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        copy.write_bytes(damaged)
        assert list(event_reader.records(str(copy))) == whole[: (ends <= place).sum()]


def test_zeros_behind_the_last_record_are_none(run, tmp_path):
    """As a file system leaves them where the machine went down."""
    (path,) = event_files(str(run))
    content, whole = pathlib.Path(path).read_bytes(), list(event_reader.records(path))
    copy = tmp_path / "events.out.tfevents.1.v2"
    copy.write_bytes(content + bytes(100_000))
    assert list(event_reader.records(str(copy))) == whole


def test_a_folder_of_runs_is_no_run(run):
    with pytest.raises(LabError, match=f"holds 1, such as {run}"):
        lab.open_run(run.parent)


def test_a_run_that_has_not_ended(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "result.json").unlink()
    reader = lab.open_run(copy)
    assert reader.result is None and reader.scalar("loss").steps[-1] == forks.STEPS
    with pytest.raises(LabError, match=str(tmp_path)):
        lab.open_run(tmp_path)


def test_of_a_step_that_is_there_twice_the_last_one_counts(tmp_path):
    for values in ({1: 10.0, 2: 20.0, 3: 30.0}, {2: 21.0, 4: 40.0}):
        with tf.summary.create_file_writer(str(tmp_path)).as_default():
            for step, value in values.items():
                tf.summary.scalar("loss", value, step=step)
                tf.summary.scalar("double", tf.constant(value, tf.float64), step=step)
                tf.summary.histogram("weights", [value, 1.0], step=step)
        # A run that goes on writes into a file whose name says a later second.
        for path in tmp_path.glob("events.out.tfevents.[1-9]*"):
            path.rename(tmp_path / f"events.out.tfevents.0{len(list(tmp_path.iterdir()))}")
    scalars, histograms = (event_reader.read(str(tmp_path), k) for k in ("scalars", "histograms"))
    assert scalars.keys() == {"loss", "double"}
    for steps, values in scalars.values():
        assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [10, 21, 30, 40]
    assert histograms["weights"].steps.tolist() == [1, 2, 3, 4]
    assert histograms["weights"].values[:, -1, 1].tolist() == [10, 21, 30, 40]
