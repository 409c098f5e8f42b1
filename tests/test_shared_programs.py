"""What a run takes of the one before it in the same process."""

import gc
import signal
import weakref
from unittest import mock

import forks
import numpy as np
import pytest

from lab.processes.stop import Stop
from lab.settings.config import Config, Settings
from lab.training import trial
from lab.training.problem import problem_of
from lab.training.programs import Programs
from lab.training.progress import Reporter

FIELDS = {
    "optimizer": "adam",
    "batch_size": 20,
    "training_steps": 7,
    "display_step": 3,
}
SLOW = pytest.mark.slow
SMALL = ("depth=1", "dropout=0.5", "heads=2", "width=8")
NETS = """
import numpy as np
import tensorflow as tf

from lab import layers


class Plain(tf.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.seed = seed
        self.dense = layers.Dense(12, 5, seed=(seed, 0))

    def __call__(self, x):
        return self.dense(x)


class Dropout(Plain):
    def __call__(self, x, training, seed):
        return self.dense(layers.Dropout(0.5)(x, training, seed))


class Scaled(Plain):
    def __call__(self, x):
        return self.dense(x) * (1.0 + self.seed)


class Masked(Plain):
    def __init__(self, seed=0):
        super().__init__(seed)
        self.mask = tf.constant(np.random.default_rng(seed).random(5), tf.float32)

    def __call__(self, x):
        return self.dense(x) * self.mask


class AtTheEnd(Plain):
    def __call__(self, x, training):
        return self.dense(x) + (0.0 if training else self.seed)


class Backwards(Plain):
    def __call__(self, x):
        @tf.custom_gradient
        def scaled(x):
            return tf.identity(x), lambda g: g * (1.0 + self.seed)

        return scaled(self.dense(x))


class Tabled(Plain):
    def __init__(self, seed=0):
        super().__init__(seed)
        keys, values = tf.constant([0, 1]), tf.constant([1.0, 1.0 + seed])
        table = tf.lookup.KeyValueTensorInitializer(keys, values)
        self.table = tf.lookup.StaticHashTable(table, 0.0)

    def __call__(self, x):
        return self.dense(x) * self.table.lookup(tf.constant(1))


class Looped(Plain):
    def __call__(self, x):
        def body(i, x):
            return i + 1, x - 0.1 * tf.square(x)

        _, y = tf.while_loop(lambda i, x: i < 3, body, (0, self.dense(x)), maximum_iterations=3)
        return tf.slice(y, [0, 0], [-1, 5])


class Compiled(Plain):
    @tf.function
    def __call__(self, x):
        @tf.custom_gradient
        def twice(x):
            return tf.identity(x), lambda g: 2.0 * g

        return twice(self.dense(x))
"""


@pytest.fixture
def train(idx_folder, tmp_path):
    """Trains a config under a name, with the programs of earlier runs; returns the directory."""

    def run(name, shared, devices="auto", stopped=False, **fields):
        config = Config(**{"data": str(idx_folder)} | FIELDS | fields)
        where = {"logdir": str(tmp_path / name), "run_name": "run", "devices": devices}
        settings, stop = Settings(**where, checkpoint_every=3), Stop()
        reporter = mock.Mock(Reporter)
        if stopped:
            reporter.advance.side_effect = lambda step: setattr(stop, "signal", signal.SIGINT)
        problem = problem_of(config)
        trial.run(config, settings, problem, reporter, stop, 0.0, programs=shared)
        return tmp_path / name / "run"

    return run


@pytest.fixture
def compiled(monkeypatch):
    """The loops that were compiled, in their order."""
    made, keep = [], Programs.keep

    def noted(self, compiled):
        made.append(compiled.loop)
        keep(self, compiled)

    monkeypatch.setattr(Programs, "keep", noted)
    return made


@pytest.fixture
def net(tmp_path):
    """A model of NETS by its name, as --model takes it."""
    (tmp_path / "net.py").write_text(NETS)
    return lambda name: f"{tmp_path}/net.py:{name}"


def images(folder):
    """28 x 28 pixels, as --data takes them."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (120, 784), np.uint8), random.integers(0, 10, 120)
    np.savez(folder / "images.npz", x=x[:100], y=y[:100], x_test=x[100:], y_test=y[100:])
    return f"{folder}/images.npz"


def shared():
    return Programs(largest=10**6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"optimizer": "sgd", "learning_rate": 3e38, "xla": "off"}, marks=SLOW),
        {"model": "Dropout", "xla": "off"},
        pytest.param({"model": "Compiled", "learning_rate": 3e38, "xla": "off"}, marks=SLOW),
        pytest.param({"model": "Dropout", "microbatches": 2}, marks=SLOW),
        pytest.param({"model": "Looped"}, marks=SLOW),
        pytest.param({"model": "transformer", "model_arguments": SMALL, "data": ""}, marks=SLOW),
        pytest.param({"model": "convnet", "data": ""}, marks=SLOW),
        pytest.param({"model": "Dropout"}, marks=SLOW),
        pytest.param({"watch": ("weights", "activations"), "xla": "off"}, marks=SLOW),
    ],
)
def test_another_seed_runs_the_same_programs_to_the_same_bits(
    train, compiled, net, fields, tmp_path
):
    """Also after a run that NaN has ended, and with models that draw in each step."""
    if fields.get("model", "")[:1].isupper():
        fields = fields | {"model": net(fields["model"])}
    if "data" in fields:
        fields = fields | {"data": images(tmp_path)}
    programs = shared()
    train("first", programs, seed=1, **fields)
    found = train("shared", programs, seed=2, **fields)
    assert len(compiled) == 1
    wanted = train("alone", None, seed=2, **fields)
    forks.assert_same_bits(found, wanted)
    assert (forks.result(found)["status"] == "nonfinite") == ("learning_rate" in fields)


@SLOW
def test_a_resumed_run_uses_the_programs_of_another(train, compiled):
    """On two devices; stopped after its first loop."""
    fields = {"xla": "off", "devices": "cpu:2", "training_steps": 9}
    wanted = train("alone", None, seed=2, **fields)
    train("shared", None, seed=2, stopped=True, **fields)
    programs = shared()
    train("first", programs, seed=1, **fields)
    before = len(compiled)
    found = train("shared", programs, seed=2, **fields)
    assert len(compiled) == before
    forks.assert_same_run(found, wanted)


@pytest.mark.parametrize(
    ("first", "second", "loops"),
    [
        ({"learning_rate": 0.1}, {"learning_rate": 0.2}, 2),
        ({"shuffle_labels": True}, {"shuffle_labels": True, "seed": 1}, 2),
        pytest.param({"watch": ()}, {"watch": ("norms",)}, 2, marks=SLOW),
        pytest.param({}, {"data": "other", "seed": 1}, 2, marks=SLOW),
        pytest.param({}, {"devices": "cpu:2", "seed": 1}, 2, marks=SLOW),
    ],
)
def test_what_decides_a_program(train, compiled, tmp_path, tiny, first, second, loops):
    np.savez(tmp_path / "other.npz", x=tiny[0].reshape(103, 12), y=tiny[1])
    programs = shared()
    for number, fields in enumerate((first, second)):
        if "data" in fields:
            fields = fields | {"data": f"{tmp_path}/other.npz"}
        train(str(number), programs, xla="off", **fields)
    assert len(compiled) == loops


@pytest.mark.parametrize(
    "name",
    [
        "Backwards",
        *(pytest.param(one, marks=SLOW) for one in ("Scaled", "Masked", "AtTheEnd", "Tabled")),
    ],
)
def test_a_model_with_its_seed_in_the_graph_is_compiled_anew(train, compiled, net, name):
    """Be it in the forward pass, in the gradient, in the evaluation or in a table. What the run
    before has compiled is not kept."""
    programs = shared()
    train("first", programs, seed=1, xla="off", model=net(name))
    (first,) = (weakref.ref(loop) for loop in compiled)
    compiled.clear()
    found = train("second", programs, seed=2, xla="off", model=net(name))
    assert len(compiled) == 1
    gc.collect()
    assert first() is None
    forks.assert_same_bits(found, train("alone", None, seed=2, xla="off", model=net(name)))


@SLOW
def test_a_large_model_is_not_kept(train, compiled):
    programs = Programs(largest=100)
    for seed in range(2):
        train(str(seed), programs, seed=seed, xla="off")
    assert len(compiled) == 2
