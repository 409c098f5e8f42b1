"""JAX with optax: lax.scan over the steps, in one jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import CLIP, EPSILON, RATE, Runner, Task, best


def make(task: Task) -> Runner:
    forms = {
        "uint8": lambda: _scan(task, task.images),
        "float32": lambda: _scan(task, task.floats()),
    }
    return best(task, forms)


def _scan(task: Task, pixels: np.ndarray) -> Runner:
    images, labels = jnp.asarray(pixels), jnp.asarray(task.labels)
    optimizer = optax.sgd(RATE) if task.rule == "sgd" else optax.adam(RATE, eps=EPSILON)
    parameters = [jnp.asarray(array) for array in task.weights()]
    state = optimizer.init(parameters)

    def loss_of(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        for i in range(0, len(parameters), 2):
            x = (jax.nn.sigmoid(x) if i else x) @ parameters[i] + parameters[i + 1]
        probability = jnp.take_along_axis(jax.nn.softmax(x), y[:, None], 1)
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
        for rows in task.chunks(indices):
            parameters, state, loss = compiled(parameters, state, images, labels, rows)
            losses.append(loss)
        jax.block_until_ready(parameters)
        return np.concatenate(losses)

    return Runner(run, chunk=task.chunk)


def about() -> dict[str, object]:
    return {"jax": jax.__version__, "optax": optax.__version__, "device": str(jax.devices()[0])}
