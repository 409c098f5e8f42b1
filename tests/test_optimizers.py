"""The update rules against Keras 3, TensorFlow's kernels and NumPy in float64, over 100 steps."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import Keras, Kernel, NumPy

from lab.models import optimizers
from lab.models.optimizers import RULES, Optimizer
from lab.settings.config import Config
from lab.training import build

pytestmark = pytest.mark.numbers

STEPS = 100
TOLERANCE = 1e-6
SHAPES = [(7, 5), (11,), (2, 3, 4), ()]


def oracles(rule, inside, **given):
    """Every foreign implementation of the rule with these hyperparameters, by name."""
    constants = {
        field.name: given.get(field.name, field.default)
        for field in dataclasses.fields(RULES[rule])
        if field.name != "epsilon_inside_root"
    }
    found = {"numpy": functools.partial(NumPy, rule=rule, inside=inside, **constants)}
    if rule in ("sgd", "adadelta") or (rule == "adam" and not inside) or inside:
        names = {"initial_accumulator": "initial_accumulator_value"}
        makers = {
            "sgd": keras.optimizers.SGD,
            "adam": keras.optimizers.Adam,
            "rmsprop": keras.optimizers.RMSprop,
            "adagrad": keras.optimizers.Adagrad,
            "adadelta": keras.optimizers.Adadelta,
        }
        if not (rule == "adam" and inside):  # Keras has Adam's epsilon outside, always
            make = functools.partial(
                makers[rule], **{names.get(key, key): value for key, value in constants.items()}
            )
            found["keras"] = functools.partial(Keras, make=make)
    # TensorFlow's Adam computes 1 - beta in float32: it differs unless that is exact.
    exact = all(
        float(np.float32(1) - np.float32(constants[beta])) == 1 - constants[beta]
        for beta in ("beta_1", "beta_2")
        if beta in constants
    )
    if rule in ("sgd", "adadelta") or (rule in ("adam", "adagrad") and not inside and exact):
        found["kernel"] = functools.partial(Kernel, rule=rule, **constants)
    return found


SETS = [
    ("sgd", {}),
    ("sgd", {"learning_rate": 1.5}),
    ("sgd", {"learning_rate": 3e-5}),
    ("adam", {}),
    ("adam", {"learning_rate": 0.3, "beta_1": 0.0, "beta_2": 0.9}),
    ("adam", {"beta_1": 0.875, "beta_2": 1 - 2**-9, "epsilon": 1e-3}),
    ("adam", {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-8}),
    ("rmsprop", {}),
    ("rmsprop", {"learning_rate": 0.2, "rho": 0.5, "epsilon": 1e-3}),
    ("rmsprop", {"learning_rate": 1e-4, "rho": 0.99, "epsilon": 1e-10}),
    ("adagrad", {}),
    ("adagrad", {"learning_rate": 0.5, "initial_accumulator": 1e-6}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator": 2.0, "epsilon": 1e-2}),
    ("adadelta", {}),
    ("adadelta", {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6}),
    ("adadelta", {"learning_rate": 0.5, "rho": 0.5, "epsilon": 1e-3}),
]
CASES = [
    pytest.param(rule, given, inside, oracle, id=f"{rule}-{i}-{oracle}{'-inside' * inside}")
    for i, (rule, given) in enumerate(SETS)
    for inside in (False, True)
    if not inside or rule in ("adam", "rmsprop", "adagrad")
    for oracle in oracles(rule, inside, **given)
]


@functools.cache
def tensors():
    """Start values, and gradients whose sizes run from 1e-5 to 10 from element to element.

    One tensor starts at 0, so that there the small steps of small gradients are all there is.
    """
    random = np.random.default_rng(1)
    start = [random.normal(0, 0.05, shape).astype(np.float32) for shape in SHAPES]
    start[0][:] = 0
    sizes = [10 ** random.uniform(-5, 1, shape) for shape in SHAPES]
    gradients = [
        [(size * random.normal(0.3, 1, size.shape)).astype(np.float32) for size in sizes]
        for _ in range(STEPS)
    ]
    return start, gradients


def trajectory(rule, start, gradients):
    """The weights after each step, by the optimizer under test, as the step calls it."""
    variables = [tf.Variable(value) for value in start]
    optimizer = Optimizer(rule, variables)
    update = tf.function(optimizer.update)
    weights = [tf.constant(value) for value in start]
    slots = [tuple(map(tf.convert_to_tensor, row)) for row in optimizer.slots]
    for step, g in enumerate(gradients, 1):
        gradient = [tf.constant(x) for x in g]
        new, slots, taken = update(weights, slots, gradient, tf.constant(step, tf.int64))
        for old, value, delta in zip(weights, new, taken, strict=True):
            np.testing.assert_array_equal(value.numpy(), old.numpy() - delta.numpy())
        weights = new
        yield [value.numpy() for value in weights]


@functools.cache
def under_test(rule, inside, **given):
    """One trajectory serves all the oracles of a case."""
    made = RULES[rule](**given, **({"epsilon_inside_root": True} if inside else {}))
    return list(trajectory(made, *tensors()))


@pytest.mark.parametrize(("rule", "given", "inside", "oracle"), CASES)
def test_parity(rule, given, inside, oracle):
    """Each element within 1e-6 of its own size and of the way that it has gone so far."""
    start, gradients = tensors()
    reference = oracles(rule, inside, **given)[oracle](start)
    before, way = start, [np.abs(value.astype(np.float64)) for value in start]
    moved = False
    for step, ours in enumerate(under_test(rule, inside, **given), 1):
        reference.apply(gradients[step - 1])
        for i, (mine, theirs) in enumerate(zip(ours, reference.values, strict=True)):
            way[i] = way[i] + np.abs(np.float64(theirs) - before[i])
            error = np.abs(np.float64(mine) - theirs) / np.maximum(way[i], 1e-30)
            assert error.max() <= TOLERANCE, (
                f"step {step}, tensor {i}: first difference, {error.max():.2g} relative at "
                f"{np.unravel_index(error.argmax(), error.shape)}"
            )
        moved |= any(np.any(a != b) for a, b in zip(ours, start, strict=True))
        before = [np.float64(value) for value in reference.values]
    assert moved


def test_every_rule_has_a_foreign_oracle():
    """The table above falls behind the table of rules at once, not silently."""
    covered = {case.values[0] for case in CASES}
    assert covered == set(RULES)
    for rule in RULES:
        assert {case.values[3] for case in CASES if case.values[0] == rule} > {"numpy"}
        hyperparameters = {field.name for field in dataclasses.fields(RULES[rule])}
        varied = {name for name_, given in SETS if name_ == rule for name in given}
        assert varied >= hyperparameters - {"epsilon_inside_root"}


@pytest.mark.parametrize("rule", RULES)
def test_slots_start_where_keras_starts_them(rule):
    variables = [tf.Variable(tf.ones([3, 2]), name="h1/weights"), tf.Variable(1.0, name="b")]
    optimizer = Optimizer(RULES[rule](), variables)
    theirs = {
        "sgd": [],
        "adam": [0.0, 0.0],
        "rmsprop": [0.0],
        "adagrad": [keras.optimizers.Adagrad().initial_accumulator_value],
        "adadelta": [0.0, 0.0],
    }[rule]
    assert len(optimizer.slots) == len(variables)
    for variable, slots in zip(variables, optimizer.slots, strict=True):
        assert len(slots) == len(theirs)
        for slot, value in zip(slots, theirs, strict=True):
            assert slot.shape == variable.shape and slot.dtype == tf.float32
            assert not slot.trainable
            np.testing.assert_array_equal(slot.numpy(), np.full(slot.shape, np.float32(value)))
    names = [slot.name for slots in optimizer.slots for slot in slots]
    assert len(set(names)) == len(names)
    if names:
        assert names[0].startswith("h1/weights/")


def test_adagrads_initial_accumulator_is_the_start():
    optimizer = Optimizer(RULES["adagrad"](initial_accumulator=0.25), [tf.Variable([1.0, 2.0])])
    np.testing.assert_array_equal(optimizer.slots[0][0].numpy(), [0.25, 0.25])


def test_the_config_offers_every_rule():
    (field,) = (field for field in dataclasses.fields(Config) if field.name == "optimizer")
    assert tuple(RULES) == field.metadata["choices"]


@pytest.mark.parametrize("rule", RULES)
def test_every_hyperparameter_is_a_field_of_the_config_with_its_default(rule):
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    for field in dataclasses.fields(RULES[rule]):
        names = [name for name in (f"{rule}_{field.name}", field.name) if name in fields]
        assert len(names) == 1, f"{rule}.{field.name} has no flag, or two"
        assert fields[names[0]] == field.default, names[0]


def test_no_field_of_the_config_is_for_a_rule_that_does_not_have_it():
    for name in (field.name for field in dataclasses.fields(Config)):
        rule, _, hyperparameter = name.partition("_")
        if rule in RULES:
            assert hyperparameter in {field.name for field in dataclasses.fields(RULES[rule])}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "adadelta"])
def test_degree_says_how_a_step_scales_with_the_loss(rule):
    """A loss times c: sgd's steps are times c, an adaptive rule's unchanged where its constants
    are scaled alike. c is a power of two, so nothing is rounded."""
    c = 256.0
    start, gradients = tensors()
    scaled = [[g * np.float32(c) for g in step] for step in gradients]
    plain = {"epsilon": 2.0**-24} if rule != "sgd" else {}
    larger = {"epsilon": plain["epsilon"] * c} if rule != "sgd" else {}
    if rule == "adagrad":
        plain["initial_accumulator"], larger["initial_accumulator"] = 0.125, 0.125 * c**2
    kind = RULES[rule]
    assert kind.degree == (1 if rule == "sgd" else 0)
    zeros = [np.zeros_like(value) for value in start]
    first = list(trajectory(kind(**plain), zeros, gradients[:20]))
    second = list(trajectory(kind(**larger), zeros, scaled[:20]))
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(b, a * c**kind.degree, rtol=1e-6)


def test_degree_of_adadelta():
    """Adadelta has one epsilon under two roots: far above it, a larger loss takes about the same
    steps, not steps 256 times as large."""
    assert RULES["adadelta"].degree == 0
    start = [np.zeros(50, np.float32)]
    random = np.random.default_rng(3)
    gradients = [[random.normal(1, 0.1, 50).astype(np.float32)] for _ in range(20)]
    scaled = [[g[0] * np.float32(256)] for g in gradients]
    *_, (one,) = trajectory(RULES["adadelta"](), start, gradients)
    *_, (other,) = trajectory(RULES["adadelta"](), start, scaled)
    np.testing.assert_allclose(other, one, rtol=1e-3)


@pytest.mark.parametrize(("rule", "given"), [("adam", {"beta_2": 0.9}), ("rmsprop", {})])
def test_the_trap_of_the_epsilon(rule, given):
    """Gradients of 1e-6, far below sqrt(1e-7): outside the root a step has its full size; inside
    it shrinks with the gradient, to |g| / sqrt(g^2 + epsilon) of it."""
    g = [np.full(4, 1e-6, np.float32)]
    steps = {}
    for inside in (False, True):
        made = RULES[rule](**given, epsilon_inside_root=inside)
        ways = list(trajectory(made, [np.zeros(4, np.float32)], [g] * 200))
        steps[inside] = np.abs(ways[-1][0] - ways[-2][0]).max() / made.learning_rate
    # Outside, sqrt(a) is 1e-6 and epsilon a tenth of it.
    assert steps[False] == pytest.approx(1 / 1.1, rel=1e-3)
    assert steps[True] == pytest.approx(1e-6 / np.sqrt(1e-7), rel=1e-2)
    assert steps[False] > 200 * steps[True]


def test_the_trap_of_the_epsilon_in_adagrad():
    """There the initial accumulator hides it: only from near 0 the two differ."""
    g = [np.full(4, 1e-6, np.float32)]
    size = {
        (inside, initial): np.abs(
            next(
                trajectory(
                    RULES["adagrad"](initial_accumulator=initial, epsilon_inside_root=inside),
                    [np.zeros(4, np.float32)],
                    [g],
                )
            )[0]
        ).max()
        for inside in (False, True)
        for initial in (0.1, 0.0)
    }
    assert size[False, 0.1] == pytest.approx(size[True, 0.1], rel=1e-5)
    assert size[False, 0.0] > 200 * size[True, 0.0]


def test_rules_are_frozen():
    """A hyperparameter that changed after tracing would be ignored silently."""
    for kind in RULES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().learning_rate = 1.0


def test_gradients_must_be_one_for_each_variable():
    optimizer = Optimizer(optimizers.SGD(), [tf.Variable([1.0]), tf.Variable([2.0])])
    with pytest.raises(ValueError):
        optimizer.update([1.0, 2.0], [(), ()], [tf.constant([1.0])], tf.constant(1))


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("rule", [optimizers.SGD(0.1), optimizers.Adam(0.01)], ids=["sgd", "adam"])
def test_a_decayed_learning_rate_is_that_of_keras(rule, decay):
    steps = 40
    config = Config(learning_rate_decay=decay, training_steps=steps)
    schedule = {
        "linear": keras.optimizers.schedules.PolynomialDecay(
            rule.learning_rate, steps, end_learning_rate=0.0
        ),
        "cosine": keras.optimizers.schedules.CosineDecay(rule.learning_rate, steps),
    }[decay]
    kind = keras.optimizers.SGD if isinstance(rule, optimizers.SGD) else keras.optimizers.Adam
    reference = kind(schedule)
    start = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    ours, theirs = [tf.constant(start)], keras.Variable(start)
    optimizer = Optimizer(rule, [tf.Variable(start)], build.make_decay(config))
    slots = [tuple(map(tf.convert_to_tensor, optimizer.slots[0]))]
    for step in range(1, steps + 1):
        g = np.random.default_rng(step).normal(size=(7, 3)).astype(np.float32)
        ours, slots, _ = optimizer.update(ours, slots, [tf.constant(g)], tf.constant(step))
        reference.apply([tf.constant(g)], [theirs])
        np.testing.assert_allclose(ours[0].numpy(), theirs.numpy(), 1e-5, 1e-6)
    assert build.make_decay(Config()) is None
