"""lab.train: programs that a user writes, and what they end with where something does not fit."""

import dataclasses
import gc
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from keras import layers as keras_layers
from tensorflow.python.framework.ops import gradient_registry as gradients

import lab
from lab import machine
from lab.errors import LabError
from lab.models.adapt import Network
from lab.models.mlp import MLP
from lab.record import checkpoints
from lab.record.result_file import finished_result
from lab.settings.config import Config
from lab.step import placement
from lab.step.replica import Training
from lab.step.trace import trace
from lab.training import state as training_state


@pytest.fixture
def train(tmp_path):
    """lab.train into a folder of its own, and without a word. Unless a test is about them, no
    tensor is watched, and TensorFlow's kernels compute: little to trace, nothing to compile."""

    def call(**arguments):
        options = {"logdir": str(tmp_path), "verbose": False, "batch_size": 16, "steps": 12}
        options |= {"display_step": 5, "watch": (), "xla": "off"}
        return lab.train(**options | arguments)

    return call


@pytest.fixture(scope="module")
def images(tiny):
    x, y, x_test, y_test = tiny
    return lab.Data(x, y.astype(np.int32), x_test, y_test.astype(np.int32), name="tiny")


@pytest.fixture(scope="module")
def tokens():
    """Sequences in which each token is the one before plus 1, modulo 11; to be predicted."""
    starts = np.random.default_rng(0).integers(0, 11, 120)
    rows = (starts[:, None] + np.arange(9)) % 11
    x, y = rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)
    return lab.Data(x[:90], y[:90], x[90:], y[90:], name="tokens")


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of `Net` under the name "trained", in a folder that tests copy."""
    options = {"logdir": str(tmp_path_factory.mktemp("trained")), "name": "trained"}
    options |= {"batch_size": 16, "steps": 12, "display_step": 5, "watch": (), "xla": "off"}
    return lab.train(model=Net, data=images, checkpoint_every=9, verbose=False, **options)


class Net(tf.Module):
    """Uses all that a model may be given."""

    def __init__(self, units=6, classes=5, seed=0):
        super().__init__()
        self.blocks = [Block(12, units, seed), Block(units, classes, seed + 1)]
        self.calls = tf.Variable(0, trainable=False, dtype=tf.int64)

    def __call__(self, x, training=False, seed=None, step=None):
        if training:
            self.calls.assign(step)
        x = tf.nn.relu(self.blocks[0](tf.reshape(x, [-1, 12])))
        lab.probe("hidden", x)
        if training:
            keep = tf.random.stateless_uniform(tf.shape(x), seed, alg="philox") > 0.25
            x = tf.where(keep, x / 0.75, 0.0)
        return self.blocks[1](x)


class Block(tf.Module):
    def __init__(self, n_in, n_out, seed):
        super().__init__()
        self.w = tf.Variable(
            tf.random.stateless_normal([n_in, n_out], [seed, 0], stddev=0.3, alg="philox")
        )
        self.b = tf.Variable(tf.zeros([n_out]))

    def __call__(self, x):
        return x @ self.w + self.b


def same(one, other):
    """Whether two dicts of arrays hold the same bits."""
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


@pytest.mark.slow
def test_the_readmes_network(tmp_path):
    run = lab.train(
        optimizer=lab.Adagrad(0.01), n_hidden_2=64, steps=30, logdir=str(tmp_path), verbose=False
    )
    assert run.result["config"]["n_hidden_2"] == 64 and run.result["status"] == "completed"
    steps, loss = run.scalar("loss")
    assert steps.dtype == np.int64 and steps.tolist() == list(range(1, 31)) and loss.shape == (30,)
    steps, edges, counts = run.histogram("h1/weights")
    assert (steps.shape, edges.shape, counts.shape) == ((30,), (30, 31), (30, 30))
    assert (counts.sum(axis=1) == 784 * 128).all()


def test_a_network_of_ones_own(train, images, capsys):
    """Its tags are attribute paths; training, seed and step reach it; the record has its probe."""
    arguments = {"model": Net, "data": images, "optimizer": lab.Adam(0.01), "name": "net"}
    arguments |= {"watch": Config().watch, "xla": "auto"}
    run = train(**arguments, seed=3)
    tags = [f"blocks/{i}/{name}" for i in (0, 1) for name in ("b", "w")]
    for tag in tags:
        assert {tag, f"{tag}/gradient", f"{tag}/norm", f"{tag}/update/ratio"} <= {*run.tags}
    steps, _, counts = run.histogram("hidden")
    assert steps.tolist() == list(range(1, 13)) and (counts.sum(axis=1) == 16 * 6).all()
    assert len(run.scalar("hidden/largest").values) == len(run.scalar("gradient/norm").values) == 12
    weights = run.weights(12)
    assert weights["calls"] == 12  # the step reached the call, and its state the checkpoint
    assert weights.keys() == {*tags, "calls", *(f"{t}/{slot}" for t in tags for slot in "mv")}
    assert run.path.endswith("net")
    perceptrons = {one.name for one in dataclasses.fields(Config) if one.metadata.get("of")}
    for place in ("config.json", "result.json"):
        written = json.loads(pathlib.Path(run.path, place).read_text())["config"]
        assert written.keys() == Config().own.keys() - perceptrons, place
    # The same call opens the run, and says what would train it again; another seed is another run.
    capsys.readouterr()
    assert train(**arguments, seed=3, verbose=True).result == run.result
    assert capsys.readouterr().out.startswith(f"{run.path} already exists; overwrite=True ")
    with pytest.raises(LabError, match="seed was 3, is 4"):
        train(**arguments, seed=4)


@pytest.mark.slow
def test_the_readmes_own_network(train):
    """The file that the README has its reader save, as it stands but for the number of steps."""
    readme = pathlib.Path(lab.__file__).parent.parent / "README.md"
    (code,) = (
        block
        for block in re.findall(
            r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL
        )
        if "class Net" in block
    )
    names = {"__name__": "net"}
    exec(compile(code, "net.py", "exec"), names)
    run = train(
        model=names["Net"],
        data=lab.load("mnist"),
        steps=2,
        display_step=2,
        watch=Config().watch,
        xla="auto",
    )
    assert {"conv/weights", "head/bias/gradient", "pooled"} <= {*run.tags}
    assert run.at(2).activations["pooled"].shape == (16, 14, 14, 16)


@pytest.mark.numbers
def test_against_a_plain_loop(train):
    """A float model with a loss of its own, against NumPy's gradient descent."""
    random = np.random.default_rng(5)
    x = random.normal(size=(64, 3)).astype(np.float32)
    y = (x @ [[1.0], [-2.0], [0.5]]).astype(np.float32)

    class Linear(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.zeros([3, 1]))

        def __call__(self, x):
            return x @ self.w

    run = train(
        model=Linear,
        data=lab.Data(x, y, x, y),
        loss=lambda y, out: (y - out) ** 2,
        metrics={"mae": lambda y, out: abs(y - out)},
        optimizer=lab.SGD(0.1),
        xla="auto",
    )
    w = np.zeros([3, 1])
    for step in range(1, 13):
        own = run.batch(step)
        error = x[own] @ w - y[own]
        np.testing.assert_allclose(run.scalar("loss").values[step - 1], (error**2).mean(), 1e-4)
        np.testing.assert_allclose(run.scalar("mae").values[step - 1], abs(error).mean(), 1e-4)
        w -= 0.1 * 2 * x[own].T @ error / 16
    np.testing.assert_allclose(run.weights(12)["w"], w, 1e-4, 1e-6)
    np.testing.assert_allclose(run.result["test_loss"], ((x @ w - y) ** 2).mean(), 1e-3)
    assert run.result["test_metrics"].keys() == {"mae"} and run.result["test_accuracy"] is None


def test_a_function_as_data(train):
    def batch(step):
        x = np.random.default_rng([7, step]).normal(size=(32, 8)).astype(np.float32)
        return x, np.sin(x).sum(1, keepdims=True).astype(np.float32)

    run = train(
        model=lambda: MLP([8, 16, 1]),
        data=lab.Data(batch=batch, test=batch(1000)),
        loss=lambda y, out: tf.reduce_mean((y - out) ** 2, axis=-1),
        optimizer=lab.Adam(0.01),
        steps=40,
        batch_size=32,
    )
    assert run.result["config"]["batch_size"] == 32
    _, loss = run.scalar("loss")
    assert loss[-5:].mean() < loss[:5].mean()
    moment = run.at(17)
    x, y = batch(17)
    hidden = 1 / (1 + np.exp(-(x @ moment.before["h1/weights"] + moment.before["h1/bias"])))
    out = hidden @ moment.before["logits/weights"] + moment.before["logits/bias"]
    np.testing.assert_allclose(moment.losses, ((out - y) ** 2)[:, 0], 1e-3, 1e-5)
    assert moment.examples is None and moment.differing == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "gru"])
def test_tokens(train, tokens, kind):
    """Loss and accuracy are per token; a Keras GRU on them, too."""
    model = keras.Sequential(
        [
            keras_layers.Embedding(11, 8),
            keras_layers.GRU(12, return_sequences=True),
            keras_layers.Dense(11),
        ]
    )
    if kind == "own":

        def model():
            return lab.models.Transformer(
                vocabulary=11, length=8, width=16, heads=2, depth=1, causal=True
            )

    run = train(model=model, data=tokens, optimizer=lab.Adam(0.03), steps=60, xla="auto", watch=())
    assert run.scalar("accuracy").values[-1] > 0.9 and run.result["test_accuracy"] > 0.9
    assert run.result["test_correct"] is None and run.result["test_total"] == 30


def functional():
    x = keras.Input([4, 3])
    h = keras_layers.Dense(8, activation="relu", name="wide")(keras_layers.Flatten()(x))
    h = keras_layers.Dropout(0.3)(keras_layers.BatchNormalization(name="norm")(h))
    return keras.Model(x, keras_layers.Dense(5, name="head")(h))


@pytest.mark.parametrize(
    ("devices", "xla"),
    [
        ("cpu:1", "off"),
        *(pytest.param(devices, "auto", marks=pytest.mark.slow) for devices in ("cpu:1", "cpu:2")),
    ],
)
def test_keras(train, images, devices, xla):
    """A functional model with BatchNorm and dropout: tags are its paths, its state is in the
    checkpoints, training is told from evaluation, and, compiled, it repeats bit for bit."""
    arguments = {"model": functional, "data": images, "optimizer": lab.SGD(0.05, momentum=0.9)}
    arguments |= {"xla": xla, "devices": devices}
    functional()  # after which Keras numbers the names of the next one's layers
    run = train(**arguments)
    found = run.weights(12)
    assert not [tag for tag in found if re.search(r"_\d+(/|$)", tag)]
    assert xla == "off" or same(found, train(**arguments, name="again").weights(12))
    assert {"wide/kernel", "norm/gamma", "norm/moving_mean", "head/bias/velocity"} <= found.keys()
    assert np.abs(found["norm/moving_mean"]).max() > 0
    # The evaluation is what the model itself gives in inference.
    model = functional()
    for variable in model.variables:
        tag = variable.path.removeprefix(f"{model.name}/")
        if "seed_generator" not in tag:
            variable.assign(found[tag])
    logits = model(images.x_test / np.float32(255), training=False).numpy()
    assert run.result["test_correct"] == (logits.argmax(1) == images.y_test).sum()


def test_an_autoencoder_with_tied_weights(train, images):
    """The target is the input; a variable that is used twice is there once."""

    class Tied(tf.Module):
        def __init__(self, seed):
            super().__init__()
            self.encode = Block(12, 4, seed)
            self.decode = self.encode
            self.bias = tf.Variable(tf.zeros([12]))

        def __call__(self, x):
            return tf.tanh(self.encode(x)) @ tf.transpose(self.decode.w) + self.bias

    x = images.x.reshape(-1, 12) / np.float32(255)
    run = train(
        model=Tied, data=lab.Data(x), loss="mean_squared_error", steps=30, watch=Config().watch
    )
    assert {t for t in run.tags if t.endswith("/gradient")} == {
        *("encode/w/gradient", "encode/b/gradient", "bias/gradient")
    }
    assert run.scalar("loss").values[-1] < run.scalar("loss").values[0]
    assert run.result["test_loss"] is None and run.result["status"] == "completed"


@pytest.mark.numbers
def test_float64_and_integers_of_rank_one(train):
    """float64 is trained as float64: against NumPy, to 12 digits."""
    x = np.random.default_rng(1).integers(0, 7, 50).astype(np.int16)
    y = np.sin(x.astype(np.float64))

    class Table(tf.Module):
        def __init__(self):
            super().__init__()
            self.rows = tf.Variable(tf.zeros([7], tf.float64))

        def __call__(self, x):
            return tf.gather(self.rows, tf.cast(x, tf.int32))

    run = train(
        model=Table,
        data=lab.Data(x, y),
        loss=lambda y, out: (y - out) ** 2,
        optimizer=lab.SGD(0.3),
        xla="auto",
    )
    rows = np.zeros(7)
    for step in range(1, 13):
        own = run.batch(step)
        change = np.zeros(7)
        np.add.at(change, x[own], 2 * (rows[x[own]] - y[own]) / 16)
        rows -= 0.3 * change
    found = run.weights(12)["rows"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, rows, rtol=1e-7)  # the rate is a float32


@pytest.mark.numbers
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_losses_of_half_precision_are_summed_in_float32(train, dtype):
    """64 losses of 3,540 are more than float16 holds, and bfloat16 has 8 bits of each sum."""

    class Half(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.zeros([4, 3]))

        def __call__(self, x):
            return tf.cast(x @ self.w, dtype)

    x = np.ones([64, 4], np.float32)
    y = np.linspace(58.5, 60.5, 64 * 3, dtype=np.float32).reshape(64, 3)
    options = {"loss": "mean_squared_error", "optimizer": lab.SGD(1e-9), "reduction": "mean"}
    options |= {"metrics": {"same": lambda y, out: (out - tf.cast(y, dtype)) ** 2}, "steps": 2}
    run = train(model=Half, data=lab.Data(x, y, x, y), batch_size=64, **options)
    expected = np.mean(np.square(y, dtype=np.float64))
    for tag in ("loss", "same", "test-loss"):
        values = run.scalar(tag).values
        # Each loss has the rounding of its dtype, the mean of many has less.
        assert values[0] == pytest.approx(expected, rel=5e-4) and np.isfinite(values).all(), tag
    assert run.result["status"] == "completed" and not run.result["nonfinite"]


@pytest.mark.slow
def test_two_hundred_variables(train, images):
    class Deep(tf.Module):
        def __init__(self):
            super().__init__()
            self.layers = [Block(12, 12, seed) for seed in range(99)] + [Block(12, 5, 99)]

        def __call__(self, x):
            x = tf.reshape(x, [-1, 12])
            for layer in self.layers[:-1]:
                x += 0.1 * tf.tanh(layer(x))
            return self.layers[-1](x)

    run = train(model=Deep, data=images, steps=3, watch=Config().watch, xla="auto")
    assert len([t for t in run.tags if t.endswith("/gradient")]) == 200
    assert run.histogram("layers/98/w").steps.tolist() == [1, 2, 3]


def test_data_larger_than_what_the_devices_may_hold(train, trained, images, tmp_path, monkeypatch):
    """A np.memmap is read batch by batch, and gives the same run."""
    path = tmp_path / "x"
    images.x.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=images.x.shape)
    data = lab.Data(mapped, images.y, images.x_test, images.y_test, name="tiny")
    monkeypatch.setattr(training_state, "_RESIDENT", 100)
    outside = train(model=Net, data=data, name="outside")
    assert same(trained.weights(12), outside.weights(12))
    assert trained.result["test_loss"] == outside.result["test_loss"]


# ------------------------------------------------------------------ any step again


@pytest.mark.parametrize(
    ("xla", "steps"),
    [("off", (7,)), pytest.param("auto", (1, 4, 5, 6, 11, 12), marks=pytest.mark.slow)],
)
def test_any_step_again(train, images, monkeypatch, xla, steps):
    """Weights, slots and state are those of a run that saved each step, bit for bit; the rest is
    what was recorded, and what the update rule makes of it."""
    arguments = {"model": Net, "data": images, "optimizer": lab.Adam(0.01), "xla": xla}
    arguments |= {"watch": ("norms", "probes")}
    run = train(**arguments, checkpoint_every=5, steps_per_loop=3)
    monkeypatch.setattr(checkpoints, "KEEP", 100)
    whole = train(**arguments, checkpoint_every=1, name="whole")
    for step in steps:
        moment = run.at(step)
        assert same(moment.weights | moment.slots | moment.state, whole.weights(step))
        assert moment.differing == ()
        np.testing.assert_array_equal(moment.examples, run.batch(step))
        loss = run.scalar("loss").values[step - 1]
        assert moment.scalars["loss"] == loss
        np.testing.assert_allclose(moment.losses.mean(), loss, 1e-5)
        assert moment.activations["hidden"].shape == (16, 6)
        for tag, update in moment.updates.items():
            np.testing.assert_allclose(moment.before[tag] - update, moment.weights[tag], 1e-5, 1e-7)
            norm = np.linalg.norm(moment.gradients[tag])
            recorded = run.scalar(f"{tag}/gradient/norm").values[step - 1]
            np.testing.assert_allclose(norm, recorded, 1e-4)
    for step in (0, 13):
        for ask in (run.at, run.batch):
            with pytest.raises(LabError, match=f"no step {step}: it has the steps 1 to 12"):
                ask(step)


def test_a_run_that_was_given_objects_is_told_them_again(trained, images):
    run = trained
    with pytest.raises(LabError, match=r"data, model as objects: open it with .*model=\.\.\."):
        lab.open_run(run.path).at(3)
    moment = lab.open_run(run.path, model=Net, data=images).at(9)
    assert same(moment.weights | moment.slots | moment.state, run.weights(9))
    other = lab.open_run(run.path, model=lambda seed: Net(7, seed=seed), data=images)
    with pytest.raises(LabError, match="cannot be retrained: its network was"):
        other.at(3)


def test_steps_after_an_interruption_that_was_resumed_and_killed(train, trained, images, tmp_path):
    """Its result.json is still that of the interruption."""
    path = shutil.copytree(trained.path, tmp_path / "killed")
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(result | {"status": "interrupted", "step": 4}))
    run = lab.open_run(path, model=Net, data=images)
    assert same(run.at(9).weights, trained.at(9).weights)
    with pytest.raises(LabError, match="no step 13: it has the steps 1 to 12"):
        run.at(13)


def test_a_run_is_opened_with_its_own_rule(train, images):
    run = train(model=Net, data=images, optimizer=lab.Adam(0.01))
    given = {"model": Net, "data": images}

    class Other(lab.Adam):
        pass

    for rule in (lab.SGD(0.01), lab.Adam(0.02), lab.Adam(0.01, beta_1=0.8), Other(0.01)):
        with pytest.raises(LabError, match="was trained with") as error:
            lab.open_run(run.path, **given, optimizer=rule)
        assert "\n" not in str(error.value)
    moment = lab.open_run(run.path, **given, optimizer=lab.Adam(0.01)).at(12)
    assert same(moment.weights, {n: run.weights(12)[n] for n in moment.weights})


def test_a_model_that_was_made_already_keeps_its_weights(train, images):
    """It is trained in place, and a replay leaves it as it was."""
    model = Net(seed=4)
    model.source = "a name of the user's own"  # not that of data which were read by theirs
    run = train(model=model, data=images)
    assert run.circumstances["given"] == ["data", "model"]
    trained = model.blocks[0].w.numpy()
    assert same(run.weights(12), run.weights(12) | {"blocks/0/w": trained})
    run.at(2)
    np.testing.assert_array_equal(model.blocks[0].w.numpy(), trained)
    # Called again, under another name, it goes on from there.
    more = train(model=model, data=images, name="more")
    np.testing.assert_array_equal(more.weights(0)["blocks/0/w"], trained)


def test_a_model_object_goes_with_its_run(train, images, monkeypatch):
    """A finished run gives it the last weights, an interrupted one those of its checkpoint; other
    weights are another run's."""
    whole = train(model=Net(seed=4), data=images, name="whole", watch=("norms",))
    again = Net(seed=4)
    train(model=again, data=images, name="whole", watch=("norms",))
    np.testing.assert_array_equal(again.blocks[0].w, whole.weights(12)["blocks/0/w"])
    with pytest.raises(LabError, match="holds another run"):
        train(model=Net(seed=5), data=images, name="whole", watch=("norms",))

    model, steps = Net(seed=4), training_state.TrainingState.run

    def failing(state, count, notify):
        if state.step >= 9:
            raise KeyboardInterrupt
        return steps(state, count, notify)

    arguments = {"model": model, "data": images, "name": "cut", "watch": ("norms",)}
    arguments |= {"steps_per_loop": 3, "checkpoint_every": 6}
    monkeypatch.setattr(training_state.TrainingState, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        train(**arguments)
    monkeypatch.undo()
    resumed = train(**arguments)
    assert same(resumed.weights(12), whole.weights(12))
    for tag in ("blocks/0/w/distance", "blocks/1/b/distance"):
        np.testing.assert_array_equal(resumed.scalar(tag), whole.scalar(tag))


@pytest.mark.slow
def test_a_model_object_in_a_process_where_tensorflow_runs(tmp_path):
    program = [sys.executable, f"{programs.CHILDREN}/library_object.py", str(tmp_path)]
    environment = programs.ENVIRONMENT
    outcome = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert outcome.stdout.splitlines()[-1:] == ["completed 2"], outcome.stderr


def test_threads_of_a_process_where_tensorflow_runs(monkeypatch):
    """It takes one for each core where none were chosen, and has to be content with them."""
    monkeypatch.setattr(
        placement.tf.config.threading, "get_intra_op_parallelism_threads", lambda: 0
    )
    monkeypatch.setattr(machine, "cores", lambda: range(7))
    placement.set_threads(7)
    with pytest.raises(LabError, match=r"--threads=3: .* with 7 threads"):
        placement.set_threads(3)


def test_generators_go_on_after_a_run(train, images):
    def drawn():
        return tf.random.normal([3]).numpy().tolist()

    tf.random.set_seed(5)
    expected = [drawn(), drawn()]
    tf.random.set_seed(5)
    found = [drawn()]
    train(data=images, model=Net, name="one")
    assert [*found, drawn()] == expected


def test_infinity_that_a_model_probes_is_no_failure(train, images):
    class Masked(Net):
        lost = 100

        def __call__(self, x, training=False, seed=None, step=None):
            out = super().__call__(x, training, seed, step)
            lab.probe("masked", tf.where(out > 0, out, -np.inf))
            return out if step is None else tf.where(step >= self.lost, np.nan, out)

    class Lost(Masked):
        lost = 7

    run = train(model=Masked, data=images, name="masked", watch=("probes", "norms"))
    assert run.result["status"] == "completed" and run.why().event is None
    assert run.result["nonfinite"]["masked"]["first_step"] == 1
    arguments = {"model": Lost(), "data": images, "name": "lost", "watch": ("probes", "norms")}
    lost = train(**arguments)
    assert (lost.result["status"], lost.result["step"]) == ("nonfinite", 7)
    assert train(**arguments).result == lost.result
    assert lost.why(repeat=False).event.step == 7


def test_a_second_ctrl_c_ends_the_run_and_not_the_process(train):
    def batch(step):
        if step == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        x = np.random.default_rng([7, step]).normal(size=(16, 12)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int32)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model=lambda: MLP([12, 4, 2]), data=lab.Data(batch=batch))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_leaves_nothing_behind(train, images):
    """TensorFlow would keep the graph of each custom gradient, and with it the data."""
    before = {*gradients.list()}
    data = lab.Data(images.x.reshape(-1, 12), images.y, name="flat")
    held = weakref.ref(data)
    train(data=data, steps=2, n_hidden_1=4, n_hidden_2=4)
    assert {*gradients.list()} == before
    del data
    gc.collect()
    assert held() is None


def test_a_function_of_ones_own_is_differentiated_after_a_run(train, images):
    """Of silu TensorFlow registers a gradient where the user's function is traced, which lasts."""
    silu = tf.function(tf.nn.silu)

    class Smooth(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.fill([12, 5], 0.1))

        def __call__(self, x):
            return silu(tf.reshape(x, [-1, 12]) @ self.w)

    model = Smooth()
    run = train(model=model, data=images, name="first")  # evaluated on all test examples
    x = tf.constant(images.x_test / np.float32(255))
    found = []
    for call in (model, lambda x: tf.nn.silu(tf.reshape(x, [-1, 12]) @ model.w)):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(call(x))
        found.append(tape.gradient(total, model.w))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    size = len(images.x_test)  # the shape of that evaluation, now with a gradient
    again = train(model=Smooth, data=images, name="again", batch_size=size, steps=2)
    assert (run.result["status"], again.result["status"]) == ("completed", "completed")


@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_custom_gradients_within_branches_are_left_behind_neither(train, images, parts):
    def twice(z):
        z = tf.cond(tf.reduce_sum(z) > 0, lambda: tf.nn.silu(z), lambda: tf.nn.silu(-z))
        return tf.while_loop(lambda i, z: i < 2, lambda i, z: (i + 1, tf.nn.silu(z)), (0, z))[1]

    before = {*gradients.list()}
    train(model=calling(twice), data=images, steps=2, microbatches=parts)
    assert {*gradients.list()} == before


def test_in_another_thread(train, images):
    """Where no signal can be noted."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train(model=Net, data=images)))
    thread.start()
    thread.join()
    assert found[0].result["status"] == "completed"


# ------------------------------------------------------------------ networks never share a run


def test_data_that_were_changed_are_other_data(train, images):
    """In place, or by another array in the place of one."""
    x = images.x.reshape(-1, 12).astype(np.float32)
    data = lab.Data(x, images.y.copy(), name="mine")
    model = {"model": lambda: MLP([12, 4, 5]), "data": data, "steps": 2}
    before = train(**model)
    assert train(**model).path == before.path
    data.y[:] = 0
    changed = train(**model)
    assert changed.path != before.path
    assert changed.scalar("loss").values[0] != before.scalar("loss").values[0]
    data.x = x[:50]
    data.y = data.y[:50]
    assert train(**model).path not in (before.path, changed.path)


def test_a_part_of_the_data_that_were_loaded_is_other_data(train, idx_folder):
    data = lab.load(str(idx_folder))
    model = {"model": lambda: MLP([12, 4, 5]), "data": data, "steps": 2}
    before = train(**model)
    data.x, data.y = data.x[:40], data.y[:40]
    part = train(**model)
    assert part.path != before.path and part.circumstances["data"] != before.circumstances["data"]
    assert part.batch(2).max() < 40


def test_two_networks_never_share_a_run(train, images):
    """Another size, another network, another constant."""
    train(model=lambda seed: Scaled(Net(seed=seed), 1.0), data=images, name="mine")
    flat = lab.Data(images.x.reshape(-1, 12), images.y, name="tiny")
    for other, data in (
        (lambda seed: Net(7, seed=seed), images),
        (lambda seed: MLP([12, 6, 5], seed=seed), flat),
        (lambda seed: Scaled(Net(seed=seed), 2.0), images),
    ):
        with pytest.raises(LabError, match="holds another run"):
            train(model=other, data=data, name="mine")


def test_what_tells_two_runs_apart(train, trained, images, tmp_path):
    """First weights, the names of what is recorded, and a rule of one's own."""

    class Renamed(Net):
        def __call__(self, x, training=False, seed=None, step=None):
            lab.probe("other", x)
            return super().__call__(x, training, seed, step)

    class SGD(lab.SGD):
        def delta(self, g, t, slots):
            return 2.0 * self.learning_rate * g, ()

    shutil.copytree(trained.path, tmp_path / "trained")
    again = train(model=Net, data=images, name="trained", checkpoint_every=9)
    assert again.result == trained.result
    for changed in (
        {"model": lambda: Net(seed=1)},
        {"model": Renamed},
        {"metrics": {"right": lambda y, out: tf.equal(tf.argmax(out, 1, tf.int32), y)}},
        {"optimizer": SGD()},
    ):
        with pytest.raises(LabError, match="holds another run"):
            train(**{"model": Net, "data": images, "name": "trained"} | changed)


def test_a_rule_that_was_typed_in_is_known_by_its_code(train, images):
    def made(factor):
        names: dict = {"lab": lab}
        code = (
            f"class Mine(lab.Rule):\n  def delta(self, g, t, slots):\n    return {factor} * g, ()"
        )
        exec(code, names)
        return names["Mine"](0.1)

    first = train(model=Net, data=images, optimizer=made(0.1), name="mine")
    again = train(model=Net, data=images, optimizer=made(0.1), name="mine")
    assert again.result == first.result
    with pytest.raises(LabError, match="holds another run"):
        train(model=Net, data=images, optimizer=made(-0.1), name="mine")


def test_data_of_a_recipe(train, images, tmp_path):
    test = {"x_test": images.x_test.reshape(-1, 12), "y_test": images.y_test}
    np.savez(tmp_path / "own.npz", x=images.x.reshape(-1, 12), y=images.y, **test)
    flat = "import lab\nRECIPE = {'data': 'own.npz', 'training_steps': 6}\n"
    flat += "def net(seed):\n    return lab.models.MLP([12, 4, 5], seed=seed)\n"
    (tmp_path / "mine.py").write_text(flat)
    run = train(model=f"{tmp_path}/mine.py:net", steps=None, batch_size=None)
    assert (run.config["data"], run.result["step"]) == (f"{tmp_path}/own.npz", 6)


@pytest.mark.parametrize("first", [True, False])
def test_a_network_of_functions_is_the_same_each_time(first):
    """Its digest tells what its functions are and in which order they are called, and nothing of
    what else the process has traced."""

    def digest(swapped):
        one = tf.function(lambda x: tf.sin(x))
        two = tf.function(lambda x: tf.cos(x))

        class Composed(tf.Module):
            def __init__(self):
                super().__init__()
                self.w = tf.Variable(tf.ones([3]))

            def __call__(self, x):
                x = one(two(x)) if swapped else two(one(x))
                return self.w * tf.cond(x[0, 0] > 0, lambda: x, lambda: one(x))

        training = Training(Network(Composed()), None, lambda y, out: tf.reduce_sum(out, 1), 4)
        x = tf.TensorSpec([4, 3])
        return trace(tf.distribute.get_strategy(), training, x, x).digest

    found = [digest(first) for _ in range(3)]
    assert len({*found}) == 1 and digest(not first) != found[0]


def test_activations_are_those_of_the_network_in_training(train, images):
    """They are given what the call is given; or they would train another network."""

    class Own(Net):
        def activations(self, x, training=False, seed=None, step=None):
            return {"out": self(x, training, seed, step)}

    class Deaf(Net):
        def activations(self, x):
            return {"out": self(x)}

    plain = train(model=Own, data=images, name="plain", steps=3, watch=())
    watched = train(model=Own, data=images, name="watched", steps=3, watch=("activations", "norms"))
    assert same(plain.weights(3), watched.weights(3)) and "out/activations" in watched.tags
    with pytest.raises(LabError, match="activations must accept training, as its call does"):
        train(model=Deaf, data=images, watch=("activations",))


def test_arguments_of_a_named_model(train):
    noise = np.random.default_rng(2).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    data = lab.Data(noise, np.arange(20, dtype=np.int32) % 10, name="noise")
    arguments = {"channels": 2, "units": 4, "dropout": 0.0, "batch_norm": True}
    run = train(model="convnet", data=data, steps=1, **arguments)
    found = run.result["config"]
    assert found["optimizer"] == "adam"  # by its recipe
    given = {"channels=2", "units=4", "dropout=0.0", "batch_norm=true"}
    assert given == {*found["model_arguments"]}
    assert run.weights(1)["conv1/weights"].shape == (5, 5, 1, 2)
    assert "norm1/mean" in run.weights(1)


class Scaled(tf.Module):
    """Differs from another in a constant alone."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self._factor = inner, factor

    def __call__(self, x):
        return self.inner(x) * self._factor


# ------------------------------------------------------------------ what does not fit


class Pair(Net):
    def __call__(self, x):
        return super().__call__(x), x


class Careless(Net):
    def __call__(self, x):
        return super().__call__(x) + tf.Variable(1.0, name="offset")


class Wrong(Net):
    def __call__(self, x):
        return tf.matmul(x, self.blocks[0].w)


class WithKeras(tf.Module):
    """What tf.Module does not find by itself, and what is no weight although it says so."""

    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential(
            [keras.Input([12]), keras_layers.BatchNormalization(), keras_layers.Dense(5)]
        )
        self.scale = tf.Variable(1.0)
        self.calls = tf.Variable(0)

    def __call__(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return self.inner(tf.reshape(x, [-1, 12]), training=training) * self.scale


class Listed:
    """No tf.Module: it lists what is trained, and no more."""

    def __init__(self):
        self.w = tf.Variable(tf.zeros([12, 5]))
        self.calls = tf.Variable(0, trainable=False)

    @property
    def trainable_variables(self):
        return [self.w]

    def __call__(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return tf.reshape(x, [-1, 12]) @ self.w


def test_what_a_model_reaches_is_trained_or_in_its_state(train, images):
    """A metric may give truth values; paths and NumPy's numbers are arguments as others."""
    hits = {"hits": lambda y, out: tf.argmax(out, 1, output_type=tf.int32) == y}
    run = train(model=WithKeras, data=images, metrics=hits, seed=np.int64(3), watch="weights")
    first, last = run.weights(0), run.weights(12)
    assert last["calls"] == 12
    trained = {
        *("scale", "inner/dense/kernel", "inner/dense/bias"),
        *(f"inner/batch_normalization/{name}" for name in ("gamma", "beta")),
    }
    moved = {name for name in first if first[name].tobytes() != last[name].tobytes()}
    averages = {f"inner/batch_normalization/moving_{name}" for name in ("mean", "variance")}
    assert trained <= moved and averages <= moved
    assert run.histogram("inner/dense/kernel").steps.tolist() == list(range(1, 13))
    _, values = run.scalar("hits")
    assert set(np.round(values * 16, 4)) <= set(range(17)) and run.result["test_metrics"]["hits"]


def test_metrics_with_names_that_the_lab_uses_for_its_own(train, images):
    """An accuracy in percent is no share of 1, and what is called predicted no prediction."""
    percent = {
        "accuracy": lambda y, out: 100 * tf.cast(tf.argmax(out, 1, tf.int32) == y, tf.float32),
        "predicted": lambda y, out: tf.reduce_max(out, 1),
    }
    run = train(model=Net, data=images, metrics=percent, name="percent")
    assert run.result["test_metrics"].keys() == percent.keys()
    assert run.result["test_metrics"]["accuracy"] > 1 and run.result["test_accuracy"] is None
    assert run.result["test_correct"] is None and run.result["collapsed"] is None
    assert finished_result(run.path) == run.result
    plain = train(model=Net, data=images, name="plain")
    share = plain.result["test_accuracy"]
    assert 100 * share == pytest.approx(run.result["test_metrics"]["accuracy"])
    assert share == plain.result["test_correct"] / 41


@pytest.mark.slow
def test_the_state_that_a_model_does_not_list_is_found_on_each_device(train, images):
    run = train(model=Listed, data=images, devices="cpu:2")
    assert run.weights(12)["calls"] == 12


def test_a_model_that_takes_one_batch_size_only(train, images):
    with pytest.raises(LabError, match=r"cannot be called on the test examples: .*\[16,5\]"):
        train(model=calling(lambda x: tf.reshape(x, [16, 5])), data=images)


def test_a_function_that_fails_at_a_step_and_ctrl_c_lose_nothing(train):
    def batch(step):
        if step == 7 and 7 in ends:
            raise OSError("the disk\nis gone")
        if step == 10 and 10 in ends:
            signal.raise_signal(signal.SIGINT)
        x = np.random.default_rng([7, step]).normal(size=(16, 12)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int32)

    ends = {7, 10}
    arguments = {"model": lambda: MLP([12, 4, 2]), "data": lab.Data(batch=batch), "name": "run"}
    arguments |= {"steps_per_loop": 3, "checkpoint_every": 3}
    with pytest.raises(LabError, match=r"batch\(7\): OSError: the disk is gone .*library.py, line"):
        train(**arguments)
    ends = {10}
    with pytest.raises(KeyboardInterrupt, match="run is saved; the same call resumes it"):
        train(**arguments)
    ends = set()
    resumed = train(**arguments)
    whole = train(**arguments | {"name": "whole"})
    assert same(resumed.weights(12), whole.weights(12))
    assert resumed.scalar("loss").steps.tolist() == list(range(1, 13))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "clipped_cross_entropy"])
@pytest.mark.parametrize("label", [5, -1])
def test_a_later_label_that_is_no_class_is_named_with_its_step(train, loss, label):
    """Batch 1 shows five classes; a loss would take another label for one of these."""

    def batch(step):
        y = np.arange(16, dtype=np.int32) % 5
        y[3] = label if step == 7 and wrong else 4
        return np.random.default_rng(step).normal(size=(16, 12)).astype(np.float32), y

    wrong = True
    arguments = {"data": lab.Data(batch=batch), "loss": loss, "steps_per_loop": 3, "name": "run"}
    arguments |= {"n_hidden_1": 4, "n_hidden_2": 4, "checkpoint_every": 3}
    with pytest.raises(LabError) as error:
        train(**arguments)
    text = str(error.value)
    assert "batch(7)" in text and str(label) in text and "0 to 4" in text and "\n" not in text
    wrong = False
    assert train(**arguments).result["status"] == "completed"


def probing(name, tensor, inside=None):
    """A model that probes something of its first layer's output."""

    class Probing(Net):
        def __call__(self, x):
            x = self.blocks[0](tf.reshape(x, [-1, 12]))
            call = tf.function(lambda x: lab.probe(name, x)) if inside else None
            lab.probe(name, tensor(x)) if call is None else call(x)
            return self.blocks[1](x)

    return Probing


def calling(change):
    """A model that does something to its output."""

    class Calling(Net):
        def __call__(self, x):
            return change(super().__call__(x))

    return Calling


class Needy(Net):
    def __init__(self, units):
        super().__init__(units)


class Adding(keras_layers.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(x**2))
        return x


def half():
    net = Net()
    net.blocks[1].b = tf.Variable(tf.zeros([5], tf.float16))
    return net


def of_keras(*last, **options):
    def make():
        dense = keras_layers.Dense(5, name="dense", **options)
        return keras.Sequential([keras.Input([4, 3]), keras_layers.Flatten(), dense, *last])

    return make


def holding():
    """A tf.Module that holds a layer of Keras's."""
    model = WithKeras()
    model.inner = keras_layers.Dense(5, activity_regularizer="l2")
    model.inner.build([None, 12])
    return model


class Method(Listed):
    def trainable_variables(self):
        return [self.w]


class Texts(Net):
    def __init__(self):
        super().__init__()
        self.word = tf.Variable("text", trainable=False)


def flat(x):
    """Adds what has no gradient in TensorFlow."""
    return x + tf.reduce_sum(tf.linalg.lu(tf.eye(5) + x[:5, :5])[0])


def of_outside():
    offset = tf.Variable(1.0, name="offset")
    return calling(lambda x: x + offset)()


def numbers(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": Pair}, r"the model returns a tuple: must be one tensor, \[batch, \.\.\.\]"),
        ({"model": Careless}, r"creates a variable in its call \(offset\).*in its constructor"),
        ({"model": Wrong}, r"cannot be called on a batch of x, uint8 \[16, 4, 3\].*library\.py"),
        ({"model": 3}, "3 is neither a model nor a loss: must be callable"),
        ({"model": lambda: 3}, "the model is int: must be a callable with trainable_variables"),
        ({"model": lambda: MLP([12, 4])}, r"cannot be called"),
        ({"model": lambda seed: Net(classes=4)}, "labels y go from 0 to 4.*4 classes.* 0 to 3"),
        (
            {"loss": lambda y, out: 0.0},
            r"the loss is float32 \[\]: must be one floating-point value",
        ),
        ({"loss": lambda y, out: y}, "the loss is int32"),
        ({"loss": "mean_squared_error"}, "the loss cannot be computed of y int32"),
        ({"loss": "hinge"}, "--loss=hinge: must be one of"),
        ({"metrics": {"odd": lambda y, out: tf.reduce_mean(out)}}, r"the odd is float32 \[\]"),
        ({"optimizer": "lion"}, "--optimizer=lion: must be one of"),
        ({"optimizer": lab.SGD(-1.0)}, "--learning_rate=-1.0: must be a number, at least 0"),
        ({"stepz": 3}, "stepz is neither an argument of lab.train"),
        (
            {"optimizer": lab.Adam(0.1), "learning_rate": 0.2},
            "learning_rate belongs to the optimizer: pass it to Adam",
        ),
        ({"data": [1, 2]}, "data is list: must be a lab.Data"),
        ({"data": "nowhere"}, "nowhere"),
        ({"devices": "gpu:3"}, "--devices=gpu:3: must be"),
        ({"batch_size": 0}, "--batch_size=0: must be"),
        ({"model": Needy}, "the model cannot be made: TypeError: .*'units'"),
        ({"model": Method}, "Method.trainable_variables is a method: must be a list"),
        ({"model": half}, r"blocks/1/b is float16.*keep it in float32 and cast it in the call"),
        (
            {"model": of_keras(dtype="bfloat16"), "devices": "cpu:2"},
            "dense/kernel is bfloat16.*mixed_bfloat16",
        ),
        (
            {"model": of_keras(bias_regularizer="l2")},
            "variable dense/bias has a regularizer.*loss function, or remove it",
        ),
        (
            {"model": of_keras(kernel_constraint="non_neg")},
            "variable dense/kernel has a constraint.*remove it",
        ),
        ({"model": of_keras(Adding())}, r"adds a loss in its call.*loss function, or remove it"),
        (
            {"model": of_keras(activity_regularizer="l2"), "devices": "cpu:2"},
            "adds a loss in its call",
        ),
        ({"model": holding}, "dense.* adds a loss in its call"),
        ({"model": Texts}, "the variable word is string: must hold numbers"),
        ({"model": calling(lambda x: tf.nn.dropout(x, 0.5))}, "uses RandomUniform.*stateless"),
        ({"model": calling(lambda x: x * np.random.rand())}, "NumPy's random numbers in its call"),
        ({"model": of_outside}, r"variable offset:0, which is not among its own"),
        ({"model": probing("p", None, inside=True)}, r"probe\('p', \.\.\.\) is called inside"),
        ({"model": probing("blocks/0/w", tf.abs)}, "not a tag already on record"),
        ({"model": probing("test-loss", tf.abs)}, "not a tag already on record"),
        ({"model": probing(3, tf.abs)}, r"probe\(3, .*must be a string"),
        ({"model": probing("p", lambda x: "text")}, r"is string \[\]: must hold numbers"),
        ({"model": probing("p", lambda x: x[x > 0])}, r"float32 \[None\]: its shape must be"),
        (
            {"model": probing("p", lambda x: tf.reduce_mean(x, 0)), "devices": "cpu:2"},
            r"is float32 \[6\]: with several replicas .* must start with the batch, \[16, \.\.\.\]",
        ),
        ({"model": probing("p", lambda x: x[0]), "microbatches": 2}, "must start with the batch"),
        ({"microbatches": 17}, "--microbatches=17: must be at most the examples .* a step, 16"),
        ({"watch": ("activations",)}, "Net has no method activations"),
        ({"metrics": [abs]}, "metrics is list: must be a dict"),
        ({"metrics": {"loss": abs}}, "the metric 'loss': its name must be"),
        ({"metrics": {"test-loss": abs}}, "the metric 'test-loss': its name must be"),
        ({"metrics": {"config": abs}}, "the metric 'config': its name must be"),
        ({"metrics": {"a": abs, "test-a": abs}}, "the metric 'test-a': its name must be"),
        ({"model": Listed, "metrics": {"w": abs}}, "the metric 'w': its name must be"),
        ({"metrics": {"m": "accuracy"}}, "the metric m is str: must be a function"),
        ({"optimizer": lab.Adam}, r"optimizer is Adam: must be an object such as lab.Adam\(1e-3\)"),
        ({"data": 3}, "data is int: must be a lab.Data"),
        (
            {"data": lab.Data(np.ones([20, 4, 3], np.uint8), np.ones([20, 1], np.int32))},
            r"y are int32 \[1\] each: softmax_cross_entropy takes one label .*\[16, 1, classes\]",
        ),
        (
            {"data": lab.Data(batch=lambda step: (numbers(8, 12), numbers(8)))},
            "batch_size=16: the batches of data have 8",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(train, images, tmp_path, arguments, expected):
    with pytest.raises(LabError, match=expected) as error:
        train(**{"model": Net, "data": images} | arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "before the first step nothing is written"


@pytest.mark.parametrize("function", [False, True])
def test_an_operation_without_a_gradient_is_named(train, images, function):
    with pytest.raises(LabError, match=r" Lu[ ,]") as error:
        train(model=calling(tf.function(flat) if function else flat), data=images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: lab.Data(numbers(5, 3), numbers(4)), "5 training x but 4 y"),
        (lambda: lab.Data(numbers(0, 3), numbers(0)), "examples are empty"),
        (lambda: lab.Data(numbers(5), numbers(5), numbers(5, 2), numbers(5)), "same shape"),
        (lambda: lab.Data(np.array(["a"]), numbers(1)), "dtype <U1: must be an array of numbers"),
        (lambda: lab.Data([[1, 2], [3]], [1, 2]), "training x is not an array: .*inhomogeneous"),
        (lambda: lab.Data(numbers(5), numbers(5), numbers(5)), "x_test and y_test must be given"),
        (lambda: lab.Data(batch=lambda step: 1 / 0), r"batch\(1\): ZeroDivisionError: .* line"),
        (
            lambda: lab.Data(batch=lambda step: np.stack([numbers(2), numbers(3)])),
            r"batch\(1\): ValueError: .*test_library\.py, line",
        ),
        (lambda: lab.Data(), "either x .* or batch"),
        (lambda: lab.Data(numbers(3) / 0, numbers(3)).digest, r"x\[0\] holds NaN or infinity"),
        (lambda: lab.Data(batch=lambda step: 3), r"batch\(1\) must return \(x, y\)"),
        (
            lambda: lab.Data(batch=lambda step: (numbers(step), numbers(step))).batch(2),
            r"batch\(2\) gives x as float32 \[2\], batch\(1\) as float32 \[1\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_data_that_do_not_fit(make, expected):
    with pytest.raises(LabError, match=expected) as error:
        make()
    assert "\n" not in str(error.value)
