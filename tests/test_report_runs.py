"""Run directories as the report reads them: against TensorBoard's loaders and plain NumPy."""

import json
import shutil

import events
import numpy as np
import numpy_network
import pytest
import small_runs

from lab import data, errors
from lab.analysis.labels import DEFAULTS, counted, label, labels_of
from lab.analysis.runs import read_runs
from lab.report import page
from lab.report.story import make_story
from lab.training import between, replay


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    return small_runs.trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def found(logdir):
    return read_runs(str(logdir))


@pytest.fixture
def copy(logdir, tmp_path):
    """A logdir of one's own; the data stay where they are."""
    return shutil.copytree(logdir, tmp_path / "copy [1]*")


def run_of(runs, name, seed):
    group = next(group for group in runs.groups if group.label == name)
    return next(run for run in group.runs if run.seed == seed)


def test_every_scalar_is_the_one_that_tensorboard_reads(found):
    for run in (run_of(found, "sgd 1", 0), run_of(found, "adam 0.02", 1)):
        theirs = {t: s for t, s in events.read(run.path).items() if s.plugin == "scalars"}
        assert theirs.keys() == run.scalars.keys() and len(theirs) > 20
        for tag, series in theirs.items():
            np.testing.assert_array_equal(run.scalars[tag][0], series.steps)
            np.testing.assert_array_equal(run.scalars[tag][1], np.float64(series.values))
        assert len(run.every_step("loss")) == run.steps == small_runs.STEPS
        assert run.every_step("test-loss") is None and run.every_step("absent") is None


def test_the_weights_are_those_that_were_evaluated(found):
    for group in found.groups:
        dataset = data.load(found.folders[group.data])
        x = dataset.x_test.astype(np.float32) / np.float32(255)
        for run in group.runs:
            labels = dataset.y_test
            said = numpy_network.accuracy(run.final, "sigmoid", x, labels) * len(x)
            assert round(said) == run.result["test_correct"]
            # The newest two checkpoints stay beside the first.
            assert sorted(run.networks) == [0, small_runs.STEPS - 20, small_runs.STEPS]
            assert not any(bias.any() for bias in run.initial.biases)


def test_trained_again_by_one_process_every_seed_has_its_own_bits(found, monkeypatch):
    """The program of the first one serves them all."""
    runs, compiled = found.groups[found.labels.index("sgd 1")].runs, []

    def state_of(*arguments, **options):
        compiled.append(replay.state_of(*arguments, **options))
        return compiled[-1]

    monkeypatch.setattr(between, "state_of", state_of)
    again = [between.weights_at(run.path, [1, run.steps]) for run in runs]
    between._kept.clear()
    assert len(runs) == 3 and len(compiled) == 1
    for run, weights in zip(runs, again, strict=True):
        for tag, end in run.final.items():
            np.testing.assert_array_equal(weights[run.steps][tag], end)
            assert (weights[1][tag] != run.initial[tag]).any()


def test_runs_that_differ_in_the_seed_are_one_group(found):
    seeds = {group.label: [run.seed for run in group.runs] for group in found.groups}
    assert seeds == {"sgd 1": [0, 1, 2], "sgd 1000": [0], "adam 0.02": [1]}
    assert [len(group.completed) for group in found.groups if group.label == "sgd 1000"] == [0]
    assert found.labels == [group.label for group in found.groups]
    assert found.problems == [] and len(found.folders) == 1
    sgd = found.groups[found.labels.index("sgd 1")]
    assert [g.label for g in found.sweep(sgd, "learning_rate")] == ["sgd 1", "sgd 1000"]
    assert found.sweep(sgd, "optimizer") == [sgd]


def test_a_label_says_what_is_shown_and_not_the_recipes(found):
    config = {**found.groups[0].config, "optimizer": "adam", "learning_rate": 1e-5}
    config |= {"shuffle_labels": True, "activation": "relu"}
    assert label(config, []) == "adam 1e-05"
    shown = ["n_hidden_1", "activation", "shuffle_labels", "epsilon", "seed"]
    assert label(config, shown) == "adam 1e-05 8×6 activation=relu shuffle_labels"
    config |= {"model": "/x/net.py:Net", "model_arguments": ["channels=8", "kernel=3x3"]}
    shown = ["model", "model_arguments", "shuffle_labels"]
    assert label(config, shown) == "net.py:Net channels=8 kernel=3x3 adam 1e-05 shuffle_labels"
    assert label(config, shown, ["model"]).startswith("/x/net.py:Net channels=8")


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda run: (run / "result.json").unlink(), "not finished"),
        (lambda run: (run / "result.json").write_text("{"), "result.json"),
        (lambda run: (run / "result.json").write_text('{"config": {}}'), "result.json"),
        (lambda run: _rewrite(run, status="nonfinite"), "ended as nonfinite"),
        (lambda run: _rewrite(run, step=None), "step"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "step-000000000"), "checkpoint"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoint of step 0, 60"),
        (lambda run: _cut(next((run / "checkpoints").glob("*60/*.data-*"))), "cannot be read"),
        (lambda run: _cut(next(run.glob("events.*"))), "of 60 steps"),
        (lambda run: _flip(next(run.glob("events.*"))), "of 60 steps"),
        (lambda run: next(run.glob("events.*")).unlink(), "0 of 60 steps"),
    ],
)
def test_a_damaged_run_is_left_out_with_a_line(copy, harm, word):
    run = next(copy.glob("sgd,lr=1,*seed=1"))
    harm(run)
    found = read_runs(str(copy))
    lines = [line for line in found.problems if "left out" in line]
    assert len(lines) == 1 and word in lines[0] and run.name in lines[0] and "\n" not in lines[0]
    assert [run.seed for run in found.groups[found.labels.index("sgd 1")].runs] == [0, 2]


def _rewrite(run, **changes):
    path = run / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_data_that_are_gone_or_differ_are_told(copy, tmp_path):
    other = small_runs.write_data(tmp_path / "other", seed=4)
    for folder, word in ((tmp_path / "gone", "gone"), (other, "not what runs here were trained")):
        for path in copy.glob("*/result.json"):
            config = json.loads(path.read_text())["config"]
            _rewrite(path.parent, config={**config, "data": str(folder)})
        found = read_runs(str(copy))
        assert len(found.groups) == 3 and found.folders == {}
        assert len(found.problems) == 1 and word in found.problems[0]


def test_a_folder_without_runs_and_no_folder(tmp_path):
    found = read_runs(str(tmp_path))
    assert not found.groups and not found.problems
    with pytest.raises(errors.LabError, match="no such directory"):
        read_runs(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("field", "values", "names"),
    [
        ("display_step", (20, 50), {"sgd 1 display_step=20", "sgd 1 display_step=50"}),
        ("watch", (["norms"], ["weights"]), {"sgd 1 watch=norms", "sgd 1 watch=weights"}),
        ("deterministic", (True, False), {"sgd 1", "sgd 1 nodeterministic"}),
        ("data", ("/a/mnist", "/b/mnist"), {"data=/a/mnist", "data=/b/mnist"}),
    ],
)
def test_labels_are_unique_whatever_differs(copy, field, values, names):
    for path in copy.glob("*/result.json"):
        result = json.loads(path.read_text())
        seed = result["config"]["seed"]
        config = result["config"] | {field: values[seed == 1]}
        digest = str(seed == 1) if field == "data" else result["data"]
        _rewrite(path.parent, config=config, data=digest)
    found = read_runs(str(copy))
    assert len(set(found.labels)) == len(found.labels) == 4
    groups = [group.label for group in found.groups]
    assert len(set(groups)) == len(groups)
    for name in names:
        assert any(label.endswith(name) for label in found.labels), found.labels
    if field == "data":  # the longest ones; what is drawn does not depend on the field
        page.as_html(make_story(found))


def test_labels_that_nothing_tells_apart_are_counted():
    config = {**DEFAULTS}
    assert counted(labels_of([config, config, config], [])) == [
        "sgd 0.01",
        "sgd 0.01 (2)",
        "sgd 0.01 (3)",
    ]


def test_of_two_runs_of_one_seed_the_other_is_told(copy):
    first = next(copy.glob("sgd,lr=1,*seed=1"))
    second = shutil.copytree(first, copy / "zz-again")
    config = json.loads((first / "result.json").read_text())["config"]
    _rewrite(second, config=config | {"display_step": 50})
    found = read_runs(str(copy))
    (line,) = found.problems
    assert line == f"zz-again: left out, it repeats seed 1 of {first.name}"
    (group,) = (group for group in found.groups if group.label == "sgd 1")
    assert [run.seed for run in group.runs] == [0, 1, 2]


def test_runs_on_several_replicas_are_a_group_of_their_own(copy):
    _rewrite(next(copy.glob("sgd,lr=1,*seed=1")), replicas=2)
    found = read_runs(str(copy))
    seeds = {group.label: [run.seed for run in group.runs] for group in found.groups}
    assert seeds["sgd 1"] == [0, 2] and seeds["sgd 1 on 2 replicas"] == [1]
    alone = next(group for group in found.groups if group.label == "sgd 1")
    assert [g.label for g in found.sweep(alone, "learning_rate")] == ["sgd 1", "sgd 1000"]
