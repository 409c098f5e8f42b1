"""Any step again, of networks with a state and with randomness; and what several replicas make of
a state."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import lab
from lab import layers
from lab.record import checkpoints


@pytest.fixture
def train(tmp_path):
    def call(**arguments):
        options = {"logdir": str(tmp_path), "verbose": False, "batch_size": 16}
        return lab.train(**options | {"display_step": 20} | arguments)

    return call


def normed(images, logdir, **arguments):
    """A run of `Normed`. TensorFlow's kernels compute: they take less time than to compile."""
    options = {"model": Normed, "data": images, "optimizer": lab.SGD(0.05), "steps": 6}
    options |= {"watch": (), "xla": "off", "logdir": str(logdir), "verbose": False}
    return lab.train(**options | {"batch_size": 16, "display_step": 20} | arguments)


@pytest.fixture(scope="module")
def whole_batch(images, tmp_path_factory):
    """`Normed`, trained on one replica and in one part."""
    return normed(images, tmp_path_factory.mktemp("one"), devices="cpu:1")


@pytest.fixture(scope="module")
def images():
    random_ = np.random.default_rng(3)
    x = random_.integers(0, 256, (100, 28, 28)).astype(np.uint8)
    return lab.Data(x, random_.integers(0, 10, 100).astype(np.int32), name="noise")


def convnet(seed):
    return lab.models.ConvNet(channels=2, units=8, dropout=0.25, batch_norm=True, seed=seed)


def transformer(seed):
    return lab.models.Transformer(width=8, heads=2, depth=1, dropout=0.2, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "devices"),
    [(convnet, "cpu:1"), (transformer, "cpu:1"), (convnet, "cpu:2")],
    ids=["convnet", "transformer", "convnet on two devices"],
)
def test_five_random_steps_again(train, images, monkeypatch, model, devices):
    """Each is the bits of the uninterrupted run, of which every step is in a checkpoint; what is on
    record of it is the same, count for count."""
    monkeypatch.setattr(checkpoints, "KEEP", 10**6)
    arguments = {"model": model, "data": images, "optimizer": lab.Adam(0.01), "steps": 30}
    arguments |= {"devices": devices, "loss": "softmax_cross_entropy", "seed": 3}
    whole = train(**arguments, name="whole", checkpoint_every=1)
    run = train(**arguments, name="run", checkpoint_every=11, steps_per_loop=7)
    for step in random.Random(10).sample(range(1, 31), 5):
        moment, bits = run.at(step), whole.weights(step)
        found = moment.weights | moment.slots | moment.state
        assert found.keys() == bits.keys()
        assert all(found[name].tobytes() == bits[name].tobytes() for name in bits), step
        assert moment.differing == ()
        assert moment.scalars["loss"] == run.scalar("loss").values[step - 1]
        # The compilation that observes draws the same dropout: else these would be far apart.
        np.testing.assert_allclose(moment.losses.mean(), moment.scalars["loss"], 1e-4)
        before = whole.weights(step - 1)
        assert all(moment.before[n].tobytes() == before[n].tobytes() for n in moment.before)
    assert bool(moment.state) == (model is convnet)


class Normed(tf.Module):
    def __init__(self, seed):
        super().__init__()
        self.norm = layers.BatchNorm(784, momentum=0.9)
        self.head = layers.Dense(784, 10, seed=(seed, 0))
        self.calls = tf.Variable(0, trainable=False)
        self.level = tf.Variable(0.0, trainable=False)  # without an aggregation of its own

    def __call__(self, x, training=False):
        if training:
            self.calls.assign_add(1)
            self.level.assign(tf.reduce_mean(x))
        return self.head(self.norm(tf.reshape(x, [-1, 784]), training))


@pytest.mark.parametrize(
    ("devices", "microbatches", "xla"),
    [
        ("cpu:2", 1, "off"),
        ("cpu:1", 2, "off"),
        pytest.param("cpu:1", 2, "auto", marks=pytest.mark.slow),
        pytest.param("cpu:2", 2, "auto", marks=pytest.mark.slow),
        pytest.param("cpu:1", 4, "auto", marks=pytest.mark.slow),
    ],
)
def test_batch_norm_on_several_replicas(images, tmp_path, whole_batch, devices, microbatches, xla):
    """Each replica, or micro-batch, normalizes its own part of the batch, and the moving averages
    are the mean of what the parts make of them: as Keras layers do, one on each part."""
    run = normed(images, tmp_path, devices=devices, microbatches=microbatches, xla=xla)
    start, end = run.weights(0), run.weights(6)
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    head = keras.layers.Dense(10)
    norm.build([None, 784])
    head.build([None, 784])
    names = {
        "norm/scale": norm.gamma,
        "norm/bias": norm.beta,
        "head/weights": head.kernel,
        "head/bias": head.bias,
        "norm/mean": norm.moving_mean,
        "norm/variance": norm.moving_variance,
    }
    for name, variable in names.items():
        variable.assign(start[name])
    trained, averages = list(names.values())[:4], list(names.values())[4:]
    x = images.x.reshape(-1, 784) / np.float32(255)
    for step in range(1, 7):
        before = [variable.numpy() for variable in averages]
        sums, moved = [0.0] * 4, []
        for share in np.split(run.batch(step), int(devices[-1]) * microbatches):
            for variable, value in zip(averages, before, strict=True):
                variable.assign(value)
            with tf.GradientTape() as tape:
                logits = head(norm(tf.constant(x[share]), training=True))
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(images.y[share], logits)
                loss = tf.reduce_sum(losses) / 16
            gradients = tape.gradient(loss, [v.value for v in trained])
            sums = [one + g.numpy() for one, g in zip(sums, gradients, strict=True)]
            moved.append([variable.numpy() for variable in averages])
        for variable, gradient in zip(trained, sums, strict=True):
            variable.assign_sub(0.05 * gradient)
        for variable, *values in zip(averages, *moved, strict=True):
            variable.assign(np.mean(values, axis=0))
    for name, variable in names.items():  # float32, of sums over 784 pixels
        np.testing.assert_allclose(end[name], variable.numpy(), 1e-3, 1e-5, err_msg=name)
    np.testing.assert_allclose(end["level"], x[run.batch(6)].mean(), 1e-5)
    assert end["calls"] == 6  # integers are not averaged, and each part has its own
    # One replica normalizes the whole batch, which is something else.
    other = whole_batch.weights(6)["norm/variance"]
    assert np.abs(other / end["norm/variance"] - 1).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [2, 4])
def test_a_step_in_parts_again(train, images, monkeypatch, microbatches):
    """The bits of the run, and the losses that were on record, with dropout and moving averages;
    and the same as so many replicas give, which draw the same random numbers for the same part."""
    monkeypatch.setattr(checkpoints, "KEEP", 10**6)
    arguments = {"model": convnet, "data": images, "optimizer": lab.Adam(0.01), "steps": 5}
    arguments |= {"loss": "softmax_cross_entropy", "checkpoint_every": 1}
    run = train(**arguments, name="parts", microbatches=microbatches)
    moment, bits = run.at(4), run.weights(4)
    assert str(moment).startswith("Moment of step 4, ") and len(str(moment)) < 3000
    for tag, array in {**bits, **moment.activations}.items():
        assert f"{tag} {list(array.shape)}" in str(moment)
    found = moment.weights | moment.slots | moment.state
    assert all(found[name].tobytes() == bits[name].tobytes() for name in bits)
    assert moment.differing == () and moment.losses.shape == (16,)
    np.testing.assert_allclose(moment.losses.mean(), moment.scalars["loss"], 1e-4)
    replicas = train(**arguments, name="replicas", devices=f"cpu:{microbatches}")
    np.testing.assert_allclose(run.scalar("loss").values, replicas.scalar("loss").values, 1e-4)
    for kind in ("norm", "cosine"):
        ours, theirs = (
            one.scalar(f"gradient/{part}_1/{kind}").values
            for one, part in ((run, "part"), (replicas, "replica"))
        )
        np.testing.assert_allclose(ours, theirs, 1e-3)
    one = train(**arguments, name="one")
    assert np.abs(one.scalar("loss").values / run.scalar("loss").values - 1).max() > 0.01
