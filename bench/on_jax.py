"""JAX with optax: lax.scan over the steps, in one jit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import (
    ACROSS,
    BLOCKS,
    CLIP,
    EPSILON,
    HEADS,
    NORM_EPSILON,
    PATCH,
    Runner,
    Task,
    best,
)

Weights = dict[str, jax.Array]
Network = Callable[[Weights, jax.Array], jax.Array]


def make(task: Task) -> Runner:
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in task.weights()))
    networks: dict[str, Network] = {"": lambda p, x: _perceptron(layers, p, x)}
    if task.network == "convnet":
        networks = {
            "convolutions": lambda p, x: _convnet(p, x, _convolution),
            "products of patches": lambda p, x: _convnet(p, x, _product),
        }
    elif task.network == "transformer":
        networks = {
            "": _transformer,
            "dot_product_attention": lambda p, x: _transformer(p, x, True),
        }
    pixels = {"float32": task.floats()} | ({} if task.mean else {"uint8": task.images})
    # A loop makes some operations slow: where a step is long, a call for each may be faster.
    ways = {"scan": False} | ({"a call a step": True} if task.mean else {})
    forms = {}
    for parts in itertools.product(networks, pixels, ways):
        made = networks[parts[0]], pixels[parts[1]], ways[parts[2]]
        forms[", ".join(filter(None, parts))] = lambda made=made: _scan(task, *made)
    for parts in itertools.product(networks, pixels, ways):
        if not task.mean or "uint8" not in parts:
            made = networks[parts[0]], pixels[parts[1]], ways[parts[2]]
            forms[", ".join(filter(None, parts))] = lambda made=made: _scan(task, *made)
    return best(task, forms)


def _perceptron(layers: list[str], p: Weights, x: jax.Array) -> jax.Array:
    for i, layer in enumerate(layers):
        x = _dense(p, layer, jax.nn.sigmoid(x) if i else x)
    return x


def _dense(p: Weights, name: str, x: jax.Array) -> jax.Array:
    return x @ p[f"{name}/weights"] + p[f"{name}/bias"]


def _convnet(p: Weights, x: jax.Array, convolve: Callable[..., jax.Array]) -> jax.Array:
    x = x.reshape(-1, 28, 28, 1)
    for name, padding in (("conv1", 2), ("conv2", 0)):
        y = convolve(x, p[f"{name}/weights"], padding) + p[f"{name}/bias"]
        n, height, width, channels = y.shape
        y = jax.nn.relu(y).reshape(n, height // 2, 2, width // 2, 2, channels)
        x = y.max((2, 4))
    x = jax.nn.relu(_dense(p, "hidden", x.reshape(len(x), -1)))
    return _dense(p, "logits", x)


def _convolution(x: jax.Array, w: jax.Array, padding: int) -> jax.Array:
    pads = [(padding, padding)] * 2
    form = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=form)


def _product(x: jax.Array, w: jax.Array, padding: int) -> jax.Array:
    size, _, _, channels = w.shape
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    n, height, width, _ = x.shape
    height, width = height - size + 1, width - size + 1
    places = itertools.product(range(size), repeat=2)
    patches = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in places], -1)
    rows = patches.reshape(n * height * width, -1) @ w.reshape(-1, channels)
    return rows.reshape(n, height, width, channels)


def _transformer(p: Weights, x: jax.Array, ready_made: bool = False) -> jax.Array:
    x = x.reshape(-1, ACROSS, PATCH, ACROSS, PATCH).swapaxes(2, 3)
    x = _dense(p, "embedding", x.reshape(-1, ACROSS**2, PATCH**2)) + p["positions"]
    for block in (f"blocks/{i}" for i in range(BLOCKS)):
        y, parts = _norm(p, f"{block}/attention_norm", x), ("query", "key", "value")
        heads = [_dense(p, f"{block}/attention/{part}", y) for part in parts]
        query, key, value = (y.reshape(*y.shape[:2], HEADS, -1) for y in heads)
        if ready_made:
            y = jax.nn.dot_product_attention(query, key, value)
        else:
            scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])
            y = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
        x += _dense(p, f"{block}/attention/output", y.reshape(x.shape))
        y = jax.nn.gelu(_dense(p, f"{block}/feed_in", _norm(p, f"{block}/feed_norm", x)))
        x += _dense(p, f"{block}/feed_out", y)
    return _dense(p, "logits", _norm(p, "norm", x).mean(1))


def _norm(p: Weights, name: str, x: jax.Array) -> jax.Array:
    return p[f"{name}/bias"] + p[f"{name}/scale"] * jax.nn.standardize(x, epsilon=NORM_EPSILON)


def _scan(task: Task, network: Network, pixels: np.ndarray, each: bool) -> Runner:
    images, labels = jnp.asarray(pixels), jnp.asarray(task.labels)
    sgd = task.rule == "sgd"
    optimizer = optax.sgd(task.rate) if sgd else optax.adam(task.rate, eps=EPSILON)
    parameters = {name: jnp.asarray(array) for name, array in task.weights().items()}
    state = optimizer.init(parameters)

    def loss_of(parameters: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = network(parameters, x)
        if task.mean:
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        probability = jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)
        return -jnp.log(jnp.clip(probability, CLIP, 1.0)).sum()

    def steps(parameters, state, images, labels, indices):
        def step(carry, row):
            parameters, state = carry
            x = images[row]
            if x.dtype == jnp.uint8:
                x = x.astype(jnp.float32) / 255
            loss, gradients = jax.value_and_grad(loss_of)(parameters, x, labels[row])
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(parameters, updates), state), loss

        carry, losses = jax.lax.scan(step, (parameters, state), indices)
        return *carry, losses

    compiled = jax.jit(steps, donate_argnums=(0, 1))

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal parameters, state
        losses = []
        for rows in np.split(indices, len(indices)) if each else task.chunks(indices):
            parameters, state, loss = compiled(parameters, state, images, labels, rows)
            losses.append(loss)
        jax.block_until_ready(parameters)
        return np.concatenate(losses)

    return Runner(run, chunk=1 if each else task.chunk)


def about() -> dict[str, object]:
    return {
        "jax": jax.__version__,
        "optax": optax.__version__,
        "device": jax.devices()[0].device_kind,
    }
