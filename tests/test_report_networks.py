"""Reports on runs of any network and any data: against NumPy, and those on perceptrons."""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf
from keras import layers as keras_layers

import lab
from lab.analysis.runs import read_runs
from lab.analysis.study import measure
from lab.compare import formats
from lab.models.mlp import MLP
from lab.report import figures_json, page
from lab.report.story import make_story

STEPS = 8
_NET = """
import tensorflow as tf

class Net(tf.Module):
    def __init__(self, units=4, seed=0):
        super().__init__()
        draw = lambda k, *shape: tf.random.stateless_normal(shape, [seed, k], stddev=0.3)
        self.inner = [tf.Variable(draw(0, 20, units)), tf.Variable(draw(1, units, 4))]
        self.bias = tf.Variable(tf.zeros([4]))

    def __call__(self, x):
        return tf.tanh(x @ self.inner[0]) @ self.inner[1] + self.bias
"""


def functional():
    x = keras.Input([20])
    h = keras_layers.BatchNormalization(name="norm")(keras_layers.Dense(6, name="wide")(x))
    return keras.Model(x, keras_layers.Dense(4, name="head")(h))


class Rows(tf.Module):
    """Has no matrix."""

    def __init__(self):
        super().__init__()
        self.rows = tf.Variable(tf.zeros([7]))

    def __call__(self, x):
        return tf.gather(self.rows, tf.cast(x, tf.int32))


def _squared(y, out):
    return (y - out) ** 2


def _kinds(folder: pathlib.Path, images: str) -> dict[str, list[dict]]:
    """The arguments of a run or two of each kind."""
    (folder / "nets.py").write_text(_NET)
    random = np.random.default_rng(5)
    x = random.normal(size=(48, 3)).astype(np.float32)
    y = (x @ [[1.0], [-2.0], [0.5]]).astype(np.float32)
    tokens = (random.integers(0, 5, 60)[:, None] + np.arange(5)) % 5
    tokens = tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32)
    ones = random.integers(0, 7, 50).astype(np.int32)
    waves = lab.Data(ones, np.sin(ones).astype(np.float32))
    embedding = [keras_layers.Embedding(5, 6), keras_layers.Dense(5)]
    own = {"model": f"{folder}/nets.py:Net", "data": images}
    squared = {"model": lambda seed: MLP([3, 4, 1], seed=seed), "optimizer": lab.SGD(0.1)}
    squared |= {"loss": _squared, "data": lab.Data(x, y, x, y)}
    return {
        "own": [own, own | {"seed": 1}, own | {"model_arguments": ("units=6",)}],
        "regression": [
            squared | {"metrics": {"mae": lambda y, out: abs(y - out)}, "seed": seed}
            for seed in (0, 1)
        ],
        "no_norms": [squared | {"watch": ("weights",)}],
        "no_test": [squared | {"data": lab.Data(x, y)}],
        "tokens": [
            {
                "model": lambda: keras.Sequential(embedding),
                "data": lab.Data(*tokens, *tokens),
                "optimizer": lab.Adam(0.03),
            }
        ],
        "keras": [{"model": functional, "data": images, "optimizer": lab.Adam(0.01)}],
        "no_matrix": [squared | {"model": Rows, "data": waves}],
        "mlp": [
            {"data": images, "n_hidden_1": 8, "n_hidden_2": 6, "init_stddev": 0.5, "seed": seed}
            for seed in (0, 1)
        ],
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return folder, _kinds(folder, str(small_runs.write_data(folder / "images")))


@pytest.fixture(scope="module")
def of(kinds):
    """The folder of the runs of a kind, which are trained when it is first asked for."""
    folder, arguments = kinds

    @functools.cache
    def trained(kind):
        for one in arguments[kind]:
            options = {"steps": STEPS, "batch_size": 16, "display_step": 2, "verbose": False}
            options |= {"watch": ("norms",), "xla": "off"}  # which takes longer to compile
            lab.train(**options | {"logdir": str(folder / "logs" / kind)} | one)
        return folder / "logs" / kind

    return trained


@pytest.fixture(scope="module")
def logdir(kinds, of):
    """Of all kinds."""
    folder, arguments = kinds
    for kind in arguments:
        of(kind)
    return folder / "logs"


def story(folder):
    """The story, after it was drawn."""
    found = make_story(read_runs(str(folder)))
    page.as_html(found)
    figures_json.as_json(found)
    return {section.slug: section for section in found.sections}, dict(found.made)


def outcomes(sections):
    return {slug: section.outcome for slug, section in sections.items()}


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("own", "not_compared"), ("no_norms", "no_accuracy"), ("keras", "alone"),
        ("no_matrix", "no_run"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [
            ("regression", "no_accuracy"), ("no_test", "no_run"), ("tokens", "alone"),
        ]),
    ],
)  # fmt: skip
def test_runs_of_any_network_have_a_page(of, kind, table):
    sections, made = story(of(kind))
    found = outcomes(sections)
    assert found["table"] == table and "left out" not in made
    assert found["layers"] == found["sameness"] == found["distribution"] == "not_applicable"
    drawn = kind != "no_matrix"
    assert (found["zeros"] == "counted") == drawn == (found["growth"] != "no_matrix")
    pictures = {picture.slug for one in sections.values() for picture in one.pictures}
    assert pictures >= {"spectrum", "near-zero", "weights", "distance"} or not drawn
    assert ("ratios" in pictures) == (drawn and kind != "no_norms")
    untold = {"no_matrix", "no_updates", "no_phases"}
    assert ("phases" in pictures) == (found["growth"] not in untold)
    assert not any(control.passed is False for one in sections.values() for control in one.controls)


def test_figures_of_weights_and_of_recorded_scalars(of):
    sections, _ = story(of("keras"))
    run = lab.open_run(next(of("keras").iterdir()))
    start, end = run.weights(0), run.weights(STEPS)

    def value(slug, key):
        return next(one.value for one in sections[slug].figures if one.key == key)

    def near(weights):
        every = np.concatenate([weights[f"{name}/kernel"].ravel() for name in ("wide", "head")])
        return np.mean(abs(every) < 0.1)

    assert value("zeros", "near_zero:start") == near(start)
    assert value("zeros", "near_zero:end") == near(end)
    for tag in ("wide/kernel", "head/kernel"):
        moved = np.linalg.norm(end[tag] - start[tag])
        updates, norms = (run.scalar(f"{tag}/{what}").values for what in ("update/norm", "norm"))
        expected = moved / np.sqrt(np.sum(np.float64(updates) ** 2))
        np.testing.assert_allclose(value("growth", f"drift:{tag}"), expected, 1e-5)
        ratio = np.median(np.float64(updates) / norms)
        np.testing.assert_allclose(value("layers", f"ratio:{tag}"), ratio, 0.1)  # of W_t or W_t-1
        largest = np.linalg.svd(end[tag], compute_uv=False)
        rank = (largest**2).sum() / largest[0] ** 2
        np.testing.assert_allclose(value("distribution", f"stable_rank:{tag}"), rank, 1e-5)


def test_weights_are_what_was_trained_in_the_models_order(of):
    """Neither slots nor the averages of BatchNorm."""
    (group,) = read_runs(str(of("keras"))).groups
    model = functional()
    names = [v.path.removeprefix(f"{model.name}/") for v in model.trainable_variables]
    assert [*group.runs[0].final] == names and len(names) == 6
    assert [*group.shown] == ["wide/kernel", "head/kernel"]
    (group,) = read_runs(str(of("no_norms"))).groups  # told by the checkpoint alone
    assert {*group.runs[0].final} == {f"{n}/{part}" for n in ("h1", "logits")
                                      for part in ("bias", "weights")}  # fmt: skip


@pytest.mark.slow
def test_beside_perceptrons_the_others_are_in_the_table_alone(logdir):
    """Every section but the table is what it is in a folder of the perceptrons alone."""
    mixed, made = story(logdir)
    alone, _ = story(logdir / "mlp")
    assert outcomes(mixed)["layers"] in ("none_spared", "spared", "depends", "all_spared")
    assert made["only in the table"].count("; ") >= 5
    for slug in alone.keys() - {"table"}:
        assert mixed[slug].outcome == alone[slug].outcome
        figures = [
            {
                one.key.partition(":")[0]: one.value
                for one in sections[slug].figures
                if one.key != "alike"
            }
            for sections in (mixed, alone)
        ]
        assert figures[0] == figures[1]


@pytest.mark.slow
def test_the_table_has_each_runs_own_metric(logdir):
    found = read_runs(str(logdir))
    rows = {}
    for row in found.table.rows:
        rows.setdefault((row.metric, row.total), []).append(row)
    assert rows.keys() == {
        ("accuracy", 120), ("accuracy", None), ("mae", None), ("loss", None), ("", None)
    }  # fmt: skip
    paths = sorted(logdir.rglob("regression/*/result.json"))
    values = [json.loads(path.read_text())["test_metrics"]["mae"] for path in paths]
    assert sum(row.mean * row.runs for row in rows["mae", None]) == pytest.approx(sum(values))
    assert all(row.mean is row.low is row.std is None for row in rows["", None])
    (own,) = [row for row in rows["accuracy", 120] if row.config["model"] != "mlp" and row.runs > 1]
    assert own.seeds == [0, 1] and own.interval == "t"  # of a file's model, seeds are one row
    for show in formats.FORMATS.values():
        assert "mae" in show(found.table)
    # Only accuracies on the same data are compared.
    compared = {i for pair in found.table.pairs for i in (pair.a, pair.b)}
    assert {found.table.rows[i].data for i in compared} == {own.data}


@pytest.mark.slow
def test_measurements_of_others_are_not_taken_beside_perceptrons(logdir):
    evidence = measure(read_runs(str(logdir)))
    assert evidence.reference.known and all(group.known for group in evidence.featured)
    assert evidence.measured.keys() == {
        run.path for group in evidence.runs.groups if group.known for run in group.runs
    }
