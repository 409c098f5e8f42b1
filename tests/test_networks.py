"""The ready-made networks: against the same network put together from Keras's and NumPy's parts,
the paths of their variables, dropout, and what they refuse."""

import ast
import dataclasses
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_layers_like_keras import CLOSE, draw

import lab
from lab.models import layers
from lab.settings.config import Config

pytestmark = pytest.mark.numbers
SEED = tf.constant([3, 1], tf.int64)


def paths(module, prefix=""):
    """Every variable by each attribute path that leads to it."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        parts = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        for i, part in parts:
            path = f"{prefix}{name}" if i is None else f"{prefix}{name}/{i}"
            if isinstance(part, tf.Variable):
                found[path] = part
            elif isinstance(part, tf.Module):
                found |= paths(part, f"{path}/")
    return found


def randomize(model):
    """Biases and scales too, so that none is left out unseen."""
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(variable + 0.1 * draw(*variable.shape, seed=i))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("shape", [(3, 784), (3, 28, 28), (3, 28, 28, 1)])
def test_convnet(shape, batch_norm):
    """Against Keras's layers in a row."""
    model = lab.models.ConvNet(3, units=7, dropout=0.0, batch_norm=batch_norm, classes=4, seed=2)
    randomize(model)
    parts = [
        keras.layers.Conv2D(3, 5, padding="same"),
        *([keras.layers.BatchNormalization()] if batch_norm else []),
        *(keras.layers.ReLU(), keras.layers.MaxPooling2D()),
        keras.layers.Conv2D(6, 5),
        *([keras.layers.BatchNormalization()] if batch_norm else []),
        *(keras.layers.ReLU(), keras.layers.MaxPooling2D(), keras.layers.Flatten()),
        *(keras.layers.Dense(7, "relu"), keras.layers.Dense(4)),
    ]
    theirs = keras.Sequential(parts)
    theirs.build((3, 28, 28, 1))
    own = []
    for conv, norm in ((model.conv1, model.norm1), (model.conv2, model.norm2)):
        own += [conv.weights, conv.bias]
        own += [norm.scale, norm.bias, norm.mean, norm.variance] if norm else []
    own += [v for layer in (model.hidden, model.logits) for v in (layer.weights, layer.bias)]
    for a, b in zip(own, [w for layer in theirs.layers for w in layer.weights], strict=True):
        b.assign(a.numpy())
    x = np.abs(draw(*shape))
    expected = theirs(x.reshape(3, 28, 28, 1), training=batch_norm).numpy()
    np.testing.assert_allclose(model(tf.constant(x), training=True).numpy(), expected, **CLOSE)
    if batch_norm:
        assert np.abs(model.norm2.mean.numpy()).max() > 0
        expected = theirs(x.reshape(3, 28, 28, 1), training=False).numpy()
        np.testing.assert_allclose(model(tf.constant(x)).numpy(), expected, **CLOSE)


def keras_block(block, x, heads):
    """A block by Keras's functions and layers, with our variables; float32 [batch, T, width]."""
    ops = keras.ops

    def norm(layer, x):
        theirs = keras.layers.LayerNormalization()
        theirs.build(x.shape)
        theirs.set_weights([layer.scale.numpy(), layer.bias.numpy()])
        return theirs(x)

    def dense(layer, x):
        return ops.matmul(x, layer.weights.numpy()) + layer.bias.numpy()

    def split(x):
        return ops.reshape(x, [*x.shape[:2], heads, -1])

    attention, inner = block.attention, norm(block.attention_norm, x)
    query, key, value = (
        split(dense(layer, inner)) for layer in (attention.query, attention.key, attention.value)
    )
    if attention.query_norm:
        query, key = norm(attention.query_norm, query), norm(attention.key_norm, key)
    causal = attention._causal
    seen = keras.ops.dot_product_attention(query, key, value, is_causal=causal)
    x += dense(attention.output, ops.reshape(seen, x.shape))
    inner = ops.gelu(dense(block.feed_in, norm(block.feed_norm, x)), approximate=True)
    return norm, dense, x + dense(block.feed_out, inner)


@pytest.mark.parametrize("qk_norm", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("tokens", [False, True])
def test_transformer(tokens, qk_norm):
    """Against Keras's functions, block by block."""
    kind = {"vocabulary": 11, "length": 5, "causal": True} if tokens else {"patch": 14}
    model = lab.models.Transformer(width=8, heads=2, classes=3, qk_norm=qk_norm, seed=4, **kind)
    randomize(model)
    if tokens:
        given = np.random.default_rng(0).integers(0, 11, (3, 5)).astype(np.int32)
        x = model.embedding.weights.numpy()[given]
    else:
        given = np.abs(draw(3, 28, 28))
        patches = [given[:, i : i + 14, j : j + 14] for i in (0, 14) for j in (0, 14)]
        flat = np.stack([patch.reshape(3, 196) for patch in patches], 1)
        x = flat @ model.embedding.weights.numpy() + model.embedding.bias.numpy()
    x = tf.constant(x + model.positions.numpy())
    for block in model.blocks:
        norm, dense, x = keras_block(block, x, 2)
    x = norm(model.norm, x)
    expected = dense(model.logits, x if tokens else tf.reduce_mean(x, 1)).numpy()
    assert expected.shape == ((3, 5, 11) if tokens else (3, 3))
    given = tf.constant(given)
    np.testing.assert_allclose(model(given).numpy(), expected, **CLOSE)
    if tokens or not qk_norm:  # these take long to compile
        compiled = tf.function(model, jit_compile=True, autograph=False)
        np.testing.assert_allclose(compiled(given).numpy(), expected, **CLOSE)


NETWORKS = {
    "convnet": lambda **more: lab.models.ConvNet(channels=2, units=5, **more),
    "transformer": lambda **more: lab.models.Transformer(width=8, heads=2, patch=14, **more),
}


def test_each_variable_has_one_path():
    """That of its attributes; and each network's are all there."""
    models = [
        *(make(dropout=0.1) for make in NETWORKS.values()),
        NETWORKS["convnet"](batch_norm=True),
        NETWORKS["transformer"](qk_norm=True),
        lab.models.MLP([4, 3, 2, 5]),
    ]
    for model in models:
        found = paths(model)
        assert {id(v) for v in found.values()} == {id(v) for v in model.variables}
        assert len(found) == len(model.variables) == len({id(v) for v in found.values()})
    assert {"blocks/0/attention/query/weights", "blocks/1/feed_in/bias"} <= paths(models[3]).keys()
    assert {"norm1/mean", "conv2/weights", "hidden/bias"} <= paths(models[2]).keys()
    names = ["h1/weights", "h1/bias", "h2/weights", "h2/bias", "logits/weights", "logits/bias"]
    assert [*paths(models[4])] == names


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_and_seeds(name):
    x = tf.constant(np.abs(draw(6, 784)))
    model, same = NETWORKS[name](dropout=0.5, seed=1), NETWORKS[name](dropout=0.5, seed=1)
    plain, other = (NETWORKS[name](dropout=0.0, seed=seed) for seed in (1, 2))
    y = model(x, training=True, seed=SEED).numpy()
    np.testing.assert_array_equal(same(x, training=True, seed=SEED), y)
    assert not np.array_equal(model(x, training=True, seed=SEED + 1), y)
    np.testing.assert_array_equal(model(x), plain(x, training=True))
    assert not np.allclose(model(x), other(x))
    with pytest.raises(ValueError, match="seed"):
        model(x, training=True)
    weights = [v.numpy() for v in plain.trainable_variables if v.shape.rank > 1]
    shapes = {(w.shape, w.tobytes()) for w in weights}
    assert len(shapes) == len(weights), "two layers start alike"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lab.models.Transformer(vocabulary=5), "length=0"),
        (lambda: lab.models.Transformer(patch=5), "patch=5"),
        (lambda: lab.models.Transformer(width=10, heads=4), "heads=4"),
        (lambda: lab.models.ConvNet(dropout=1.5), "rate=1.5"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_recipe_is_of_literals(name):
    """It is read without loading the file, and each of its names is a flag's."""
    path = pathlib.Path(lab.__file__).parent / "models" / f"{name}.py"
    (recipe,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RECIPE"
    )
    assert recipe.keys() <= {field.name for field in dataclasses.fields(Config)}
    Config(**recipe)


def test_names_load_no_tensorflow():
    """`import lab` stays light, and its layers and models come when they are asked for."""
    program = "import sys, lab, lab.models; assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from lab import layers, models

    assert models.MLP and layers.Dense and lab.models.layers is layers


def test_the_first_values_of_a_layer_follow_its_seed():
    one, two = (layers.Conv2D(1, 2, 3, seed=(5, i)).weights.numpy() for i in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(layers.Conv2D(1, 2, 3, seed=(5, 0)).weights.numpy(), one)
