"""The update rules against Keras 3, TensorFlow's kernels and NumPy in float64, over 40 steps."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import Keras, Kernel, NumPy

from lab.errors import LabError
from lab.models import optimizers
from lab.models.optimizers import RULES, Optimizer
from lab.settings.config import Config
from lab.training import build

pytestmark = pytest.mark.numbers

STEPS = 40
TOLERANCE = 1e-6
SHAPES = [(7, 5), (11,), (2, 3, 4), ()]
# The update of all rules alike; the schedules have tests of their own, below.
SCHEDULE = {"warmup", "decay"}


def oracles(rule, inside, **given):
    """Every foreign implementation of the rule with these hyperparameters, by name."""
    constants = {
        field.name: given.get(field.name, field.default)
        for field in dataclasses.fields(RULES[rule])
        if field.name not in {"epsilon_inside_root", *SCHEDULE}
    }
    found = {"numpy": functools.partial(NumPy, rule=rule, inside=inside, **constants)}
    if rule in ("sgd", "adadelta") or (rule == "adam" and not inside) or inside:
        names = {
            "initial_accumulator": "initial_accumulator_value",
            "clip_norm": "global_clipnorm",
        }
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
    common = {name: constants.pop(name) for name in ("weight_decay", "clip_norm")}
    has = rule in ("sgd", "adadelta") or (rule in ("adam", "adagrad") and not inside and exact)
    if has and not any(common.values()):
        found["kernel"] = functools.partial(Kernel, rule=rule, **constants)
    return found


SETS = [
    ("sgd", {}),
    ("sgd", {"learning_rate": 1.5}),
    ("sgd", {"learning_rate": 3e-5}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"learning_rate": 0.3, "momentum": 0.5, "nesterov": True}),
    ("sgd", {"weight_decay": 0.3, "clip_norm": 10.0}),
    ("sgd", {"momentum": 0.75, "nesterov": True, "weight_decay": 2.0, "clip_norm": 10.0}),
    ("adam", {}),
    ("adam", {"learning_rate": 0.3, "beta_1": 0.0, "beta_2": 0.9}),
    ("adam", {"beta_1": 0.875, "beta_2": 1 - 2**-9, "epsilon": 1e-3}),
    ("adam", {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-8}),
    ("adam", {"weight_decay": 0.004}),
    ("adam", {"learning_rate": 0.1, "weight_decay": 0.5, "clip_norm": 10.0}),
    ("rmsprop", {}),
    ("rmsprop", {"weight_decay": 0.1, "clip_norm": 10.0}),
    ("rmsprop", {"learning_rate": 0.2, "rho": 0.5, "epsilon": 1e-3}),
    ("rmsprop", {"learning_rate": 1e-4, "rho": 0.99, "epsilon": 1e-10}),
    ("adagrad", {}),
    ("adagrad", {"weight_decay": 0.1, "clip_norm": 10.0}),
    ("adagrad", {"learning_rate": 0.5, "initial_accumulator": 1e-6}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator": 2.0, "epsilon": 1e-2}),
    ("adadelta", {}),
    ("adadelta", {"weight_decay": 0.1, "clip_norm": 10.0}),
    ("adadelta", {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6}),
    ("adadelta", {"learning_rate": 0.5, "rho": 0.5, "epsilon": 1e-3}),
]
# Of each rule its fullest set of hyperparameters, and Adagrad's defaults, for which TensorFlow has
# a kernel; all others are slow ones.
FAST = [6, 12, 14, 17, 18, 22]
CASES = [
    pytest.param(
        *(rule, given, inside, oracle),
        id=f"{rule}-{i}-{oracle}{'-inside' * inside}",
        marks=() if i in FAST else pytest.mark.slow,
    )
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
        assert varied >= hyperparameters - {"epsilon_inside_root", *SCHEDULE}


def test_the_gradients_are_clipped_in_some_steps_only():
    """Else the table above would compare one of the two cases alone."""
    norms = [np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in step)) for step in tensors()[1]]
    for _, given in SETS:
        if "clip_norm" in given:
            assert 5 < sum(norm > given["clip_norm"] for norm in norms) < 35


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


def test_the_config_offers_every_rule():
    (field,) = (field for field in dataclasses.fields(Config) if field.name == "optimizer")
    assert tuple(RULES) == field.metadata["choices"]


@pytest.mark.parametrize("rule", RULES)
def test_every_hyperparameter_is_a_field_of_the_config_with_its_default(rule):
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    renamed = {"warmup": "warmup_steps", "decay": "learning_rate_decay"}
    for field in dataclasses.fields(RULES[rule]):
        shared = renamed.get(field.name, field.name)
        names = [name for name in (f"{rule}_{field.name}", shared) if name in fields]
        assert len(names) == 1, f"{rule}.{field.name} has no flag, or two"
        assert fields[names[0]] == field.default, names[0]
        # An own value there, and nowhere else, reaches the rule.
        own = {"bool": True, "str": "cosine", "int": 7, "float": 0.7}[field.type]
        made = build.make_rule(Config(optimizer=rule, **{names[0]: own}))
        assert made == RULES[rule](**{field.name: own})
        assert build.fields_of(made)[names[0]] == own


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


def test_rules_are_frozen():
    """A hyperparameter that changed after tracing would be ignored silently."""
    for kind in RULES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().learning_rate = 1.0


def test_gradients_must_be_one_for_each_variable():
    optimizer = Optimizer(optimizers.SGD(), [tf.Variable([1.0]), tf.Variable([2.0])])
    with pytest.raises(ValueError):
        optimizer.update([1.0, 2.0], [(), ()], [tf.constant([1.0])], tf.constant(1))


def keras_rule(rule, learning_rate):
    """Keras's optimizer for one of ours, at another learning rate: a number or a schedule."""
    common = {
        "learning_rate": learning_rate,
        "weight_decay": rule.weight_decay,
        "global_clipnorm": rule.clip_norm or None,
    }
    if isinstance(rule, optimizers.SGD):
        return keras.optimizers.SGD(momentum=rule.momentum, nesterov=rule.nesterov, **common)
    return keras.optimizers.Adam(epsilon=rule.epsilon, **common)


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A warm-up before any schedule of Keras: it has one before the cosine only."""

    def __init__(self, peak, warmup, then):
        self.peak, self.warmup, self.then = peak, warmup, then

    def __call__(self, step):  # from 0
        step = tf.cast(step, tf.float32)
        rising = self.peak * (step + 1) / self.warmup
        after = self.then(tf.maximum(step - (self.warmup - 1), 0))
        return tf.where(step + 1 < self.warmup, rising, after)


def keras_schedule(rule, steps):
    schedules = keras.optimizers.schedules
    peak, warmup = rule.learning_rate, max(rule.warmup, 1)
    left = steps - warmup + 1
    if rule.decay == "cosine" and warmup > 1:  # Keras's own warm-up rises from step 0 on
        return schedules.CosineDecay(
            peak / warmup, left, warmup_target=peak, warmup_steps=warmup - 1
        )
    then = {
        "none": lambda step: tf.fill(step.shape, peak),
        "linear": schedules.PolynomialDecay(peak, left, end_learning_rate=0.0),
        "cosine": schedules.CosineDecay(peak, left),
    }[rule.decay]
    return WarmUp(peak, warmup, then)


SCHEDULED = {
    "sgd": (optimizers.SGD(0.1), (6, 20)),
    "momentum": (optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), (0, 6)),
    "nesterov": (optimizers.SGD(0.1, momentum=0.9, nesterov=True), (1, 20)),
    "adam": (optimizers.Adam(0.01, weight_decay=0.3, clip_norm=4.5), (0, 1, 6, 20)),
}


@pytest.mark.parametrize(
    ("rule", "warmup", "decay"),
    [
        pytest.param(
            *(rule, warmup, decay),
            id=f"{name}-{warmup}-{decay}",
            marks=() if warmup == 6 and name in fast else pytest.mark.slow,
        )
        for name, (rule, warmups) in SCHEDULED.items()
        for warmup in warmups
        for decay, fast in (
            *(("none", {"adam"}), ("linear", {"momentum"}), ("cosine", {"adam", "momentum"})),
        )
    ],
)
def test_warmup_and_decay_are_those_of_keras(rule, warmup, decay):
    """Momentum under a schedule too: steps of the past keep the rate of their time."""
    steps = 20
    rule = dataclasses.replace(rule, decay=decay, warmup=warmup)
    reference = keras_rule(rule, keras_schedule(rule, steps))
    start = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    ours, theirs = [tf.constant(start)], keras.Variable(start)
    optimizer = Optimizer(rule, [tf.Variable(start)], steps)
    update = tf.function(optimizer.update, jit_compile=warmup == 6)
    slots = [tuple(map(tf.convert_to_tensor, optimizer.slots[0]))]
    for step in range(1, steps + 1):
        g = np.random.default_rng(step).normal(size=(7, 3)).astype(np.float32)
        ours, slots, _ = update(ours, slots, [tf.constant(g)], tf.constant(step))
        reference.apply([tf.constant(g)], [theirs])
        # Where the rate is a few ulps apart, so is each step; the cosine ends in 1 - 1.
        np.testing.assert_allclose(ours[0].numpy(), theirs.numpy(), 1e-5, 1e-6)
    if isinstance(rule, optimizers.SGD) and rule.momentum:
        np.testing.assert_allclose(slots[0][0], reference.momentums[0].numpy(), 1e-5, 1e-6)


def shares(rule, steps):
    """By which factor each step is shortened, of a rule that takes steps of 1."""
    optimizer = Optimizer(rule, [tf.Variable(0.0)], steps)
    return [
        optimizer.update([0.0], [()], [tf.constant(1.0)], tf.constant(step))[2][0].numpy()
        for step in range(1, steps + 1)
    ]


def test_the_schedule_by_its_formula():
    sgd = functools.partial(optimizers.SGD, 1.0)
    expected = [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(shares(sgd(warmup=4, decay="linear"), 8), expected, rtol=1e-6)
    cosine = [(1 + np.cos(np.pi * i / 5)) / 2 for i in range(5)]
    found = shares(sgd(warmup=4, decay="cosine"), 8)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, *cosine], rtol=1e-6)
    np.testing.assert_allclose(shares(sgd(warmup=4), 6), [*expected[:4], 1, 1], rtol=1e-6)
    for decay in ("none", "linear", "cosine"):  # a run that ends in its warm-up
        for steps in (8, 9, 10):
            found = shares(sgd(warmup=10, decay=decay), steps)
            np.testing.assert_allclose(found, np.arange(1, steps + 1) / 10, rtol=1e-6)


def test_the_norm_that_runs_are_clipped_by():
    """In float32, folded: within rounding of float64."""
    for g in tensors()[1][:3]:
        expected = np.linalg.norm(np.concatenate([np.float64(x).ravel() for x in g]))
        assert build._norm([tf.constant(x) for x in g]).numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("norm", [build._norm, tf.linalg.global_norm])
def test_clipping_of_several_dtypes(norm):
    """By the norm of all together."""
    kinds = "float32", "float64"
    values = [np.linspace(-300, 500, 6).reshape(2, 3), np.linspace(200, 400, 3)]
    gradients = [value.astype(kind) for value, kind in zip(values, kinds, strict=True)]
    start = [tf.Variable(np.zeros_like(g)) for g in gradients]
    optimizer = Optimizer(optimizers.SGD(1.0, clip_norm=2.0), start, norm=norm)
    given = [tf.constant(g) for g in gradients]
    weights = [tf.convert_to_tensor(w) for w in start]
    _, _, taken = optimizer.update(weights, [()] * 2, given, tf.constant(1))
    length = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
    for delta, g, kind in zip(taken, gradients, kinds, strict=True):
        assert delta.dtype == kind
        expected = np.float64(g) * 2 / length
        np.testing.assert_allclose(delta, expected, 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_makes_nan(bad):
    """As in Keras: clipping must not hide it."""
    start = [np.ones(2, np.float32), np.float32(1)]
    gradients = [np.array([bad, 1], np.float32), np.float32(1)]
    reference = Keras(start, lambda: keras.optimizers.SGD(global_clipnorm=1.0))
    reference.apply(gradients)
    (ours,) = trajectory(optimizers.SGD(clip_norm=1.0), start, [gradients])
    for mine, theirs in zip(ours, reference.values, strict=True):
        assert np.isnan(mine).all() and np.isnan(theirs).all()


DOUBLES = {
    "sgd": {"momentum": 0.875},
    "adam": {"beta_1": 0.875, "beta_2": 1 - 2**-9, "epsilon": 2**-20},
    "rmsprop": {"rho": 0.875, "epsilon": 2**-20},
    "adagrad": {"initial_accumulator": 0.125, "epsilon": 2**-20},
    "adadelta": {"rho": 0.875, "epsilon": 2**-20},
}


@pytest.mark.parametrize("rule", RULES)
def test_float64(rule):
    """Weights in float64 have slots and steps of that dtype, and all of its digits. Keras rounds
    hyperparameters to float32 even then, so these are exact there."""
    given = DOUBLES[rule] | {"learning_rate": 2**-7, "weight_decay": 0.125}
    inside = {"epsilon_inside_root": True} if rule in ("rmsprop", "adagrad") else {}
    ours = RULES[rule](**given, **inside, clip_norm=10.0, warmup=4)
    names = {"initial_accumulator": "initial_accumulator_value"}
    kind = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSprop"}.get(rule, rule.title())
    reference = getattr(keras.optimizers, kind)(
        **{names.get(name, name): value for name, value in given.items()}, global_clipnorm=10.0
    )
    start, gradients = tensors()
    theirs = [keras.Variable(value, dtype="float64") for value in start]
    weights = [tf.constant(value, tf.float64) for value in start]
    optimizer = Optimizer(ours, [tf.Variable(value) for value in weights])
    slots = [tuple(map(tf.convert_to_tensor, row)) for row in optimizer.slots]
    assert slots[0] and all(slot.dtype == tf.float64 for row in slots for slot in row)
    for step, g in enumerate(gradients[:10], 1):
        g = [tf.constant(x, tf.float64) for x in g]
        weights, slots, _ = optimizer.update(weights, slots, g, tf.constant(step))
        reference.learning_rate = ours.learning_rate * min(step / 4, 1)
        reference.apply(g, theirs)
    for mine, his in zip(weights, theirs, strict=True):
        np.testing.assert_allclose(mine, his.numpy(), rtol=1e-12, atol=1e-14)


@dataclasses.dataclass(frozen=True)
class Lion(optimizers.Rule):
    """A rule as a user writes one (Chen et al., arXiv:2302.06675)."""

    beta_1: float = 0.9
    beta_2: float = 0.99
    slots = ("m",)

    def delta(self, g, t, slots):
        (m,) = slots
        step = tf.sign(self.beta_1 * m + (1 - self.beta_1) * g)
        return self.learning_rate * step, (self.beta_2 * m + (1 - self.beta_2) * g,)


def test_a_rule_of_ones_own():
    """It takes the options of all rules, and its config has the fields of all rules."""
    start, gradients = tensors()
    rule = Lion(1e-3, weight_decay=0.1, clip_norm=10.0)
    reference = Keras(
        start, lambda: keras.optimizers.Lion(1e-3, weight_decay=0.1, global_clipnorm=10.0)
    )
    for ours, g in zip(trajectory(rule, start, gradients), gradients, strict=True):
        reference.apply(g)
        for mine, theirs in zip(ours, reference.values, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert build.fields_of(rule) == {
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "clip_norm": 10.0,
        "warmup_steps": 0,
        "learning_rate_decay": "none",
    }


VARIED = [
    optimizers.SGD(0.1, momentum=0.9, nesterov=True, warmup=3),
    optimizers.Adam(1e-3, beta_1=0.8, beta_2=0.95, epsilon=1e-5, weight_decay=0.01, clip_norm=1),
    optimizers.RMSProp(0.1, rho=0.5, epsilon_inside_root=True, decay="cosine"),
    optimizers.Adagrad(1, initial_accumulator=0.3, decay="linear", warmup=100),
    optimizers.Adadelta(1.0, rho=0.9, epsilon=1e-3, weight_decay=1e-4),
]


@pytest.mark.parametrize("rule", VARIED, ids=lambda rule: type(rule).__name__)
def test_a_rule_and_its_config_are_one(rule):
    fields = build.fields_of(rule)
    config = Config(**fields)
    assert build.make_rule(config) == rule
    assert {name: getattr(config, name) for name in fields} == fields
    assert all(type(value) is type(getattr(Config(), name)) for name, value in fields.items())
    plain = build.fields_of(type(rule)())
    assert Config(**plain) == Config(optimizer=type(rule).__name__.lower())


def test_rules_that_cannot_be():
    for rule, words in (
        (optimizers.SGD(-1.0), "learning_rate=-1.0: must be a number, at least 0"),
        (optimizers.SGD(momentum=1.0), "sgd_momentum=1.0: must be a number, at least 0 and below"),
        (optimizers.Adam(decay="cosin"), "learning_rate_decay=cosin: must be one of none, linear"),
        (optimizers.Adam(warmup=0.5), "warmup_steps=0.5: must be an integer"),
        (optimizers.Adam(clip_norm=None), "clip_norm=None: must be a number"),
        (optimizers.Adagrad(weight_decay=float("nan")), "weight_decay=nan: must be a number"),
        (Lion(-1.0), "learning_rate=-1.0: must be a number"),
    ):
        with pytest.raises(LabError, match=words):
            build.fields_of(rule)
