"""JAX with optax: lax.scan over the steps, in one jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import CLIP, EPSILON, RATE, Made, Task, best
from common import about as say


def make(task: Task) -> Made:
    return best(
        task,
        {
            "uint8": lambda: _scan(task, jnp.asarray(task.images)),
            "float32": lambda: _scan(task, jnp.asarray(task.floats())),
        },
    )


def _scan(task: Task, images: jax.Array) -> Made:
    rule = optax.sgd(RATE) if task.rule == "sgd" else optax.adam(RATE, eps=EPSILON)
    labels = jnp.asarray(task.labels)
    parameters = [jnp.asarray(array) for array in task.weights()]
    state = rule.init(parameters)

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
            updates, state = rule.update(gradients, state)
            return (optax.apply_updates(parameters, updates), state), loss

        carry, losses = jax.lax.scan(step, (parameters, state), indices)
        return *carry, losses

    compiled = jax.jit(steps, donate_argnums=(0, 1))

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal parameters, state
        everything = []
        for start in range(0, len(indices), task.chunk):
            rows = indices[start : start + task.chunk]
            parameters, state, losses = compiled(parameters, state, images, labels, rows)
            everything.append(losses)
        jax.block_until_ready(parameters)
        return np.concatenate(everything)

    return Made(run, chunk=task.chunk)


def about() -> dict:
    """See common.about."""
    return say(jax=jax.__version__, optax=optax.__version__, device=str(jax.devices()[0]))
