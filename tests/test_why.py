"""bin/why on records that NumPy makes, and on small runs with a fault that is known."""

import dataclasses
import json
import shlex
import subprocess
import sys
import types

import numpy as np
import programs
import pytest
import tensorflow as tf

import lab
from lab.diagnosis import chain, experiment, pictures
from lab.diagnosis.events import marks
from lab.diagnosis.why import diagnose
from lab.models import optimizers
from lab.record.event_reader import Series
from lab.settings import command_line
from lab.training import build

TENSORS = ("h1/weights", "h1/bias", "logits/weights", "logits/bias")
STEPS = 300


class Record:
    """What a RunReader has, of series in memory: plain sgd, whose loss falls."""

    path, circumstances = "made", {}

    def __init__(self, seed=0, rate=0.01, steps=STEPS):
        random = np.random.default_rng(seed)
        size = np.exp(-0.004 * STEPS / steps * np.arange(steps))
        self.config = {"optimizer": "sgd", "learning_rate": rate, "training_steps": steps}
        self.result = None
        self.values = {"loss": 2 * size * np.exp(random.normal(0, 0.15, steps))}
        for name in TENSORS:
            gradient = size * np.exp(random.normal(0, 0.2, steps))
            self.values[f"{name}/gradient/norm"] = gradient
            self.values[f"{name}/update/norm"] = rate * gradient
            self.values[f"{name}/norm"] = 5 + 0.3 * np.cumsum(rate * gradient)
        self.steps = np.arange(1, steps + 1)

    @property
    def scalar_tags(self):
        return list(self.values)

    tags = scalar_tags

    def scalar(self, tag):
        values = self.values[tag]
        return Series(self.steps[: len(values)], values)

    def times(self, factor, step, *tags):
        for tag in tags:
            self.values[tag][step - 1] *= factor

    def cut(self, step):
        """The record ends at a step."""
        self.values = {tag: values[:step] for tag, values in self.values.items()}


def batch(record):
    gradients = [f"{n}/{what}/norm" for n in TENSORS for what in ("gradient", "update")]
    record.times(30, 200, "loss", *gradients)


def rate(record):
    record.times(30, 200, *(f"{n}/update/norm" for n in TENSORS))
    record.times(20, 201, "loss")


def weight(record):
    record.values["logits/weights/norm"][199:] += 3


def lost(record):
    record.values["h1/weights/gradient/norm"][199:] = 0
    record.values["h1/weights/update/norm"][199:] = 0


def dead(record):
    for name in TENSORS[:3]:
        record.values[f"{name}/gradient/norm"][199:] = 0
        record.values[f"{name}/update/norm"][199:] = 0


def nan_loss(record):
    record.values["loss"][199] = np.nan
    record.cut(200)


def overflow(record):
    for name in TENSORS:
        record.values[f"{name}/gradient/norm"][199] = np.inf
        record.values[f"{name}/update/norm"][199] = np.nan
    tags = [*(f"{n}/gradient" for n in TENSORS), *TENSORS]
    record.result = {"nonfinite": {tag: {"first_step": 200, "count": 1} for tag in tags}}
    record.cut(200)


def divided(record):
    record.values["h1/weights/update/norm"][199] = np.nan
    record.result = {"nonfinite": {"h1/weights": {"first_step": 200, "count": 9}}}
    record.cut(200)


def grown(record):
    """A norm that has grown fourfold while the loss crept away."""
    growth = np.exp(np.maximum(np.arange(STEPS) - 60, 0) * 0.012)
    record.values["h1/weights/norm"] *= growth
    record.values["h1/weights/update/norm"] *= 0
    record.values["h1/weights/update/norm"] += record.values["h1/weights/norm"] * 0.013
    record.values["loss"][220:] *= np.exp(0.05 * np.arange(STEPS - 220))


CASES = {
    "batch": (batch, "spike", 200, ()),
    "rate": (rate, "spike", 200, ()),
    "weight": (weight, "corruption", 200, ("logits/weights",)),
    "gradient": (lost, "corruption", 200, ("h1/weights",)),
    "flat": (dead, "corruption", 200, TENSORS[:3]),
    "overflow": (overflow, "nonfinite", 200, ("logits/bias",)),
    "epsilon": (divided, "nonfinite", 200, ("h1/weights",)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_first_link_of_an_event(kind, seed):
    change, event, step, tensors = CASES[kind]
    record = Record(seed)
    change(record)
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.finding.kind) == (event, kind)
    assert found.finding.step == step
    assert set(found.finding.tensors) == set(tensors)


def test_a_loss_that_is_not_finite():
    record = Record()
    nan_loss(record)
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.finding.kind, found.finding.step) == ("nonfinite", "batch", 200)


@pytest.mark.parametrize(
    "loss", [[586, 7e24, np.nan], [586, np.nan], [586, 7e9, 2e26, np.inf], [586, 700, 7e24, np.nan]]
)
@pytest.mark.filterwarnings("error")
def test_weights_that_the_first_update_replaced(loss):
    """As under a rate of 1e6 with relu: the norms after step 1 are those of its updates."""
    record = Record(rate=1e6)
    record.cut(len(loss))
    record.values["loss"] = np.array(loss)
    for name in TENSORS:
        update, last = record.values[f"{name}/update/norm"], loss[-1]
        update[1:] = np.inf
        update[-1] = last
        record.values[f"{name}/norm"] = update.copy()
    record.values["h1/weights/update/norm"][0] = record.values["h1/weights/norm"][0] = 1e9
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.event.step) == ("nonfinite", 3 if 700 in loss else 2)
    assert (found.finding.kind, found.finding.step) == ("rate", 1)
    assert found.finding.tensors == ("h1/weights",) and "100%" in found.finding.reason
    record.values["h1/weights/norm"][0] = 0
    assert len(loss) < 3 or "far above" in diagnose(record, repeat=False).finding.reason


FIRST_UPDATE = ("rate", 1, ("h1/weights",))


@pytest.mark.parametrize(
    ("high", "falls", "event", "finding"),
    [
        (2, False, ("divergence", 2), FIRST_UPDATE),  # as sgd at 0.1 on the stable loss
        (5, True, None, None),  # as the README's sgd at 0.01, which ends at 97%
        (80, True, ("spike", 2), FIRST_UPDATE),
        (300, True, ("divergence", 2), FIRST_UPDATE),
    ],
)
def test_a_loss_that_the_first_update_raised(high, falls, event, finding):
    """To five times the first until step `high`. Then it is at 1.25 times, or falls as others."""
    record = Record()
    record.values["h1/weights/update/norm"][0] = 0.8 * record.values["h1/weights/norm"][0]
    loss = record.values["loss"]
    if not falls:
        loss[:] = 2.5 * np.exp(np.random.default_rng(0).normal(0, 0.05, STEPS))
    loss[0], loss[1:high] = 2, 10
    found = diagnose(record, repeat=False)
    assert (found.event and (found.event.kind, found.event.step)) == event
    said = found.finding
    assert (said and (said.kind, said.step, said.tensors)) == finding
    assert len(found.others) == 0 and len(marks(record)) == (3 if event else 0)


def test_a_collapse_after_an_early_rise_is_one_event_with_it():
    """As of relu and sgd at 0.1: the layers die at step 100, and the loss never came back."""
    record = Record()
    record.values["h1/weights/update/norm"][0] = 0.8 * record.values["h1/weights/norm"][0]
    record.values["loss"][:] = 2.5 * np.exp(np.random.default_rng(0).normal(0, 0.05, STEPS))
    record.values["loss"][:2] = 2, 10
    for name in TENSORS[:3]:
        record.values[f"{name}/gradient/norm"][99:] = 0
        record.values[f"{name}/update/norm"][99:] = 0
    record.result = {"collapsed": 3}
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.event.step) == ("collapse", 2)
    assert (found.finding.kind, found.finding.step) == ("rate", 1)
    assert found.finding.tensors == ("h1/weights",) and not found.others


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("error")
def test_a_loss_that_falls_below_0_has_no_range(seed):
    """From 4 to -3, noisy: near 0 its logarithm moves far, and -3 is more than 2 times -3."""
    record = Record(seed)
    noise = np.random.default_rng(seed).normal(0, 0.3, STEPS)
    record.values["loss"] = 7 * np.exp(-np.arange(STEPS) / 60) - 3 + noise
    found = diagnose(record, repeat=False)
    assert found.event is None
    record.times(50, 250, *(f"{n}/gradient/norm" for n in TENSORS))
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.finding.step) == ("departure", 250)


@pytest.mark.parametrize("fitted", [True, False])
def test_gradients_of_0_where_the_loss_is_0(fitted):
    """As of two classes that are apart, after a first update that is large; and of dead units."""
    record = Record()
    for name in TENSORS:
        record.values[f"{name}/gradient/norm"][20:] = 0
        record.values[f"{name}/update/norm"][20:] = 0
        record.values[f"{name}/norm"][20:] = record.values[f"{name}/norm"][19]
    record.values["h1/weights/update/norm"][0] = 0.8 * record.values["h1/weights/norm"][0]
    record.values["loss"][20:] = np.where(np.arange(STEPS - 20) % 9, 0, 1e-7) if fitted else 0.5
    found = diagnose(record, repeat=False)
    assert (found.event and (found.event.kind, found.event.step)) == (
        None if fitted else ("freeze", 21)
    )


@pytest.mark.parametrize("began_at_0", [TENSORS[1::2], TENSORS])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("step", [3, 9, 30])
def test_a_batch_that_is_not_finite_before_there_are_ranges(step, large, began_at_0):
    """The updates before it are small, or, of a tensor that began at 0, all that there is of it.
    One small tensor may be replaced in the first step: the loss does not rise."""
    record = Record()
    record.values["loss"][:5] = 2
    for name in began_at_0:
        record.values[f"{name}/norm"] = np.cumsum(record.values[f"{name}/update/norm"])
    if large:
        record.values["h1/weights/update/norm"][0] = 0.8 * record.values["h1/weights/norm"][0]
    record.values["loss"][step - 1] = np.nan
    record.cut(step)
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.finding.kind) == ("nonfinite", "batch")
    assert found.finding.step == step and not found.others


def test_growth_from_inside():
    record = Record()
    grown(record)
    found = diagnose(record, repeat=False)
    assert found.finding.kind == "growth"
    assert found.finding.tensors == ("h1/weights",)
    assert 55 <= found.finding.step <= 160
    assert found.finding.facts["rate"] == pytest.approx(0.012, rel=0.2)
    norm = record.values["h1/weights/norm"]
    times = norm[found.event.step - 1] / norm[0]
    assert found.finding.facts["times"] == pytest.approx(times, rel=0.1)


@pytest.mark.parametrize(
    ("growing", "found"), [(True, ("plateau", "growth", ("scores",))), (False, None)]
)
def test_a_slight_rise_of_the_loss_counts_where_something_grew(growing, found):
    """A rise by a third that lasts, as of a transformer whose attention scores grow: at the end the
    loss is as high as at step 75. Without the growth it is no event."""
    record, t = Record(), np.arange(STEPS)
    random = np.random.default_rng(5)
    level = np.where(
        t < 150, np.exp(-0.004 * t), np.exp(-0.6 + 0.3 * np.minimum((t - 150) / 50, 1))
    )
    record.values["loss"] = 2 * level * np.exp(random.normal(0, 0.05, STEPS))
    rate = 0.03 if growing else 0.0
    noise = np.exp(random.normal(0, 0.01, STEPS))
    record.values["scores/largest"] = 5 * np.exp(rate * t) * noise
    diagnosis = diagnose(record, repeat=False)
    if not found:
        assert diagnosis.event is None
        return
    said = diagnosis.finding
    assert (diagnosis.event.kind, said.kind, said.tensors) == found
    assert diagnosis.event.step == pytest.approx(75, abs=16)
    assert said.facts["rate"] == pytest.approx(np.expm1(rate), rel=0.2)


@pytest.mark.parametrize("steps", [600, 10_000])
def test_a_loss_that_jumps_for_good_is_a_divergence(steps):
    """To 1.8 times its level, with a first step far out of its range; also in a long run, whose
    levels are of more steps than lie between two events."""
    record, jump = Record(steps=steps), round(0.534 * steps)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.15, steps - jump))
    loss = record.values["loss"]
    loss[jump:] = 1.8 * np.median(loss[jump - 16 : jump]) * noise
    record.times(20, jump + 1, "loss")
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.event.step) == ("divergence", jump + 1)


def test_a_layer_that_dies_early_after_large_updates():
    """As a convolution under a rate that is too high: its gradients are 0 from step 12 on, those of
    the next layer's weights, too, whose inputs are 0."""
    record = Record()
    for name in TENSORS[:3]:
        record.values[f"{name}/gradient/norm"][11:] = 0
        record.values[f"{name}/update/norm"][11:] = 0
    record.values["h1/weights/update/norm"][:4] = 1.5  # beside a norm of 5
    record.result = {"collapsed": 3}
    found = diagnose(record, repeat=False)
    assert (found.event.kind, found.event.step) == ("collapse", 12)
    assert (found.finding.kind, found.finding.step) == ("rate", 1)
    assert found.finding.tensors == ("h1/weights",)
    record.values["h1/weights/update/norm"][:4] = 0.01
    found = diagnose(record, repeat=False)
    assert (found.finding.kind, found.finding.step) == ("flat", 12)
    assert set(found.finding.tensors) == set(TENSORS[:3])


@pytest.mark.parametrize("seed", range(8))
def test_nothing_in_a_quiet_run(seed):
    found = diagnose(Record(seed), repeat=False)
    assert found.event is None
    assert "none" in str(found)
    assert marks(Record(seed)) == []


def test_a_schedule_is_no_event():
    """Warm-up and decay move every update by factors: they are known from the config."""
    record = Record()
    record.config |= {"warmup_steps": 100, "learning_rate_decay": "cosine"}
    t = record.steps
    done = np.clip((t - 100) / (STEPS - 99), 0, 1)
    share = np.minimum(t / 100, (1 + np.cos(np.pi * done)) / 2)
    for name in TENSORS:
        record.values[f"{name}/update/norm"] *= share
        record.values[f"{name}/norm"] = 5 + 0.3 * np.cumsum(record.values[f"{name}/update/norm"])
    assert diagnose(record, repeat=False).event is None


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (("loss",), "the loss left its range, on"),
        ((*(f"{n}/gradient/norm" for n in TENSORS),), "gradients left their range, on"),
        (("loss", "h1/bias/gradient/norm"), "loss and gradients left their range together"),
        (("scores/largest",), "scores left its range, on"),
    ],
)
def test_what_left_its_range_is_what_the_reason_names(tags, said):
    record = Record()
    record.values["scores/largest"] = np.exp(np.random.default_rng(9).normal(0, 0.1, STEPS))
    record.times(50, 200, *tags)
    found = diagnose(record, repeat=False).finding
    assert (found.kind, found.step) == ("batch", 200)
    assert found.reason.startswith(said)


def test_an_update_that_follows_its_gradient_is_not_the_culprit():
    record = Record()
    for name in TENSORS:
        record.times(50, 200, f"{name}/gradient/norm", f"{name}/update/norm")
    record.times(10, 201, "loss")
    assert diagnose(record, repeat=False).finding.kind == "batch"


def test_marks_are_the_events_and_their_links():
    record = Record()
    rate(record)
    found = marks(record)
    assert [mark.step for mark in found] == [200, 201, 201]
    assert found[0].tag in TENSORS
    assert {mark.kind for mark in found} == {"update", "loss", "spike"}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--init_stddev=1", "--shuffle_labels", "--threads=1", "--sgd_momentum=0.9", "--seed=3"],
        ["--optimizer=adam", "--adam_beta_2=0.99", "--epsilon=1e-5", "--microbatches=2"],
        ["--model=convnet", "--model.batch_norm=1", "--watch=norms", "--nodeterministic"],
        ["--model=transformer", "--model.width=32", "--learning_rate_decay=none"],
    ],
)
def test_the_remedy_is_the_run_with_one_flag_changed(flags):
    record = Record()
    rate(record)
    ((config,), _) = command_line.parse(["train", *flags, "--learning_rate=0.7"])
    record.config = json.loads(json.dumps(config.own))
    line = diagnose(record, repeat=False).remedy
    ((tried,), _) = command_line.parse(["train", *shlex.split(line)[1:]])
    less = 0.07 if config.optimizer == "sgd" else 0.23
    assert tried == dataclasses.replace(config, learning_rate=less)


def scores_grow(record):
    grown(record)
    record.values["scores/largest"] = np.exp(0.03 * np.arange(STEPS))


def early(record):
    """The first updates are too large, and the loss stays high."""
    record.times(1e3, 1, "h1/weights/update/norm")
    record.values["loss"][1:] *= 10


def slow(record):
    """The loss stays as high as at first, and the updates are small beside the weights."""
    record.values["loss"] = 2 * np.exp(np.random.default_rng(0).normal(0, 0.01, STEPS))
    for name in TENSORS:
        record.values[f"{name}/update/norm"] *= 1e-3
        record.values[f"{name}/norm"] = np.full(STEPS, 5.0)


TRANSFORMER = {"model": "transformer", "model_arguments": ["width=32"], "warmup_steps": 50}


@pytest.mark.parametrize(
    ("change", "config", "remedy"),
    [
        (scores_grow, TRANSFORMER, "--model.qk_norm=1"),
        (scores_grow, {**TRANSFORMER, "model_arguments": ["qk_norm=true"]}, "--learning_rate=0.01"),
        (early, {"warmup_steps": 20}, "--warmup_steps=150"),
        (early, {"warmup_steps": 149}, "--warmup_steps=150"),
        (early, {"warmup_steps": 150}, "--learning_rate=0.01"),
        (early, {"warmup_steps": 500}, "--learning_rate=0.01"),
        (early, {"optimizer": "sgd"}, "--learning_rate=0.003"),
        (batch, {}, "--clip_norm=3.0"),
        (batch, {"clip_norm": 20.0}, "--clip_norm=3.0"),
        (batch, {"clip_norm": 1.0}, "--learning_rate=0.01"),
        (batch, {"clip_norm": 0.1}, "--learning_rate=0.01"),
        (divided, {"epsilon": 0.0}, "--epsilon=1e-07"),
        (divided, {"epsilon": 1e-7}, "--epsilon=1e-05"),
        (slow, {}, "--learning_rate=0.3"),
        (slow, {"learning_rate": 0.0}, "--learning_rate=0.001"),
    ],
)
def test_the_remedy_goes_further_than_the_run(change, config, remedy):
    record = Record()
    change(record)
    record.config = {"optimizer": "adam", "learning_rate": 0.03, "training_steps": 3000, **config}
    found = diagnose(record, repeat=False)
    assert found.remedy.endswith(f" {remedy}"), found


def high_loss(record):
    """The loss alone."""
    record.times(30, 200, "loss")


def unrecorded(record):
    batch(record)
    for name in TENSORS:
        del record.values[f"{name}/gradient/norm"]


@pytest.mark.parametrize("change", [high_loss, nan_loss, unrecorded])
def test_no_limit_of_the_gradients_where_it_would_do_nothing(change):
    """Or where no gradients are on record."""
    record = Record()
    change(record)
    found = diagnose(record, repeat=False)
    assert (found.finding.kind, found.finding.step) == ("batch", 200)
    assert found.remedy == "lab.open_run('made').at(200), and look at the examples of its batch"


@pytest.mark.parametrize(
    ("change", "optimizer", "fields", "rest", "expected"),
    [
        (batch, "adam", "..., clip_norm=3.0", "0.03", {"clip_norm": 3.0}),
        (early, "adam", "..., warmup=150", "0.03", {"warmup_steps": 150}),
        (divided, "rmsprop", "..., epsilon=1e-07", "0.03", {"epsilon": 1e-7}),
        (early, "sgd", "0.003, ...", "momentum=0.5", {"learning_rate": 0.003}),
    ],
)
def test_the_remedy_of_a_run_of_objects_is_a_call(change, optimizer, fields, rest, expected):
    """What belongs to the optimizer is given to it, under the name that it has there."""
    record = Record()
    change(record)
    record.circumstances = {"given": ["model"]}
    record.config |= {"optimizer": optimizer, "training_steps": 3000, "learning_rate": 0.03}
    name = {"adam": "Adam", "rmsprop": "RMSProp", "sgd": "SGD"}[optimizer]
    remedy = diagnose(record, repeat=False).remedy
    assert remedy == f"lab.train(..., optimizer=lab.{name}({fields}))"
    made = remedy.partition("optimizer=")[2][:-1].replace("...", rest)
    rule = eval(made, {"lab": lab})
    assert build.fields_of(rule).items() >= {"optimizer": optimizer, **expected}.items()
    record.circumstances |= {"rule": "Mine(learning_rate=0.03), 0123456789abcdef"}
    remedy = diagnose(record, repeat=False).remedy
    assert remedy == f"lab.train(..., optimizer=Mine({fields}))"


def test_no_record_at_all():
    record = Record()
    record.values = {}
    assert diagnose(record, repeat=False).event is None
    record.result = {"step": STEPS}
    with pytest.raises(lab.LabError, match="none of its 300 steps"):
        diagnose(record, repeat=False)


KINDS = {
    "all": "",
    "no norms": "/norm",
    "no gradients": "/gradient/norm",
    "no updates": "/update/norm",
    "no weights": "s/norm",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value", [1.0, np.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (0.0, 1e30, np.inf))]
)
@pytest.mark.parametrize(
    "missing",
    [k if k in ("all", "no updates") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_any_record_has_a_diagnosis(missing, value):
    """Of any length, with or without a part of its series, from a step on times any number."""
    for steps in (1, 2, 25, 47, 48, 49, 60, 130):
        for since in {0, steps // 2}:
            record = Record()
            record.cut(steps)
            for tag in record.tags:
                if KINDS[missing] and tag.endswith(KINDS[missing]):
                    del record.values[tag]
                else:
                    record.values[tag][since:] *= value
            for result in (None, {"collapsed": 3, "nonfinite": {}}):
                record.result = result
                found = diagnose(record, repeat=False)
                assert str(found) and found.line and json.loads(found.as_json())
                assert all(mark.text for mark in marks(record))


def test_json_is_strict():
    record = Record()
    weight(record)
    record.values["logits/weights/norm"][199] = np.inf
    found = json.loads(diagnose(record, repeat=False).as_json(), parse_constant=pytest.fail)
    assert found["finding"]["kind"] == "weight"
    assert found["event"]["departures"][0]["size"] is None


# ------------------------------------------------------------------ runs

ROWS = (3, 11, 17)  # the examples of the batch of step 200 that are corrupted


def data(step, bad=200):
    random = np.random.default_rng([5, step])
    y = random.integers(0, 4, 32).astype(np.int32)
    x = (np.eye(8)[y] + random.normal(0, 0.6, (32, 8))).astype(np.float32)
    if step == bad:
        y[list(ROWS)] = (y[list(ROWS)] + 1) % 4
        x[list(ROWS)] *= 40
    return x, y


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a corrupted batch: adam on eight inputs."""
    return lab.train(
        model=lambda: lab.models.MLP([8, 12, 4], seed=1),
        data=lab.Data(batch=data),
        loss="softmax_cross_entropy",
        reduction="mean",
        optimizer=lab.Adam(0.01),
        steps=240,
        checkpoint_every=100,
        logdir=str(tmp_path_factory.mktemp("why")),
        name="corrupted",
        xla="off",
        devices="cpu:1",
        verbose=False,
    )


def test_the_examples_of_a_batch(run):
    found = run.why()
    assert (found.finding.kind, found.finding.step) == ("batch", 200)
    assert set(ROWS) <= set(found.finding.rows)
    labels = data(200)[1][list(found.finding.rows)]
    assert found.finding.facts["labels"] == labels.tolist()
    assert f"labels {labels[0]}, {labels[1]}" in str(found)
    assert found.finding.checked


def test_the_remedy_can_be_called(run, tmp_path):
    """With what the run was given in place of the dots: here only a limit of the gradients."""
    line = run.why(repeat=False).remedy
    objects = {
        "model": lambda: lab.models.MLP([8, 12, 4], seed=1), "data": lab.Data(batch=data),
        "loss": "softmax_cross_entropy", "reduction": "mean", "steps": 2, "verbose": False,
        "logdir": str(tmp_path), "xla": "off", "devices": "cpu:1",
    }  # fmt: skip
    called = line.replace("train(...", "train(**objects").replace("Adam(...", "Adam(0.01")
    tried = eval(called, {"lab": lab, "objects": objects})
    limit = run.scalar("gradient/norm").values[199]
    assert 0 < tried.config["clip_norm"] < limit


def test_a_step_without_its_batch_leaves_the_weights_alone(run):
    """The loss of the next step is then that of the old weights, as Moment has them."""
    with run.before(200) as rerun:
        losses = rerun.onward(201, steps=1)
        before = rerun.losses(of=201).mean()
    assert losses[0] == pytest.approx(run.scalar("loss").values[199], rel=1e-5)
    assert losses[1] == pytest.approx(before, rel=1e-5)
    assert abs(losses[1] - run.scalar("loss").values[200]) > 1e-4


def test_a_run_that_goes_on_unchanged_is_the_run(run):
    with run.before(195) as rerun:
        losses = rerun.onward(240)
    assert losses == pytest.approx(run.scalar("loss").values[194:], rel=1e-5)


class Counting(tf.Module):
    """Its outputs grow with the number of calls in training, which it keeps."""

    def __init__(self):
        super().__init__()
        self.head = lab.layers.Dense(8, 4, seed=(1, 0))
        self.calls = tf.Variable(0.0, trainable=False)

    def __call__(self, x, training=False):
        if training:
            self.calls.assign_add(1.0)
        return self.head(x) * (1 + 0.1 * self.calls)


def test_a_run_whose_steps_are_remade_by_the_rule_is_the_run(tmp_path):
    """And the model's own state goes on."""
    run = lab.train(
        model=Counting,
        data=lab.Data(batch=data),
        loss="softmax_cross_entropy",
        optimizer=lab.Adam(0.01),
        steps=12,
        logdir=str(tmp_path),
        xla="off",
        devices="cpu:1",
        verbose=False,
    )
    with run.before(6) as rerun:
        losses = rerun.onward(12, steps=4, by_rule=True)
    assert losses == pytest.approx(run.scalar("loss").values[5:], rel=1e-5)


def test_the_parts_of_a_step_are_those_of_the_rule(run):
    """And of the moment, which another program computes."""
    moment = run.at(150)
    with run.before(150) as rerun:
        parts = rerun.parts()
    for tag, update in moment.updates.items():
        assert parts.expected[tag] == pytest.approx(update, rel=1e-3, abs=1e-9)
        assert parts.expected_slots[f"{tag}/v"] == pytest.approx(
            moment.slots[f"{tag}/v"], rel=1e-4, abs=1e-12
        )


def command(*words):
    return programs.why(*words)


def test_the_command(run):
    outcome = command(run.path, "--record")
    assert outcome.status == 0, outcome.err
    assert "culprit   batch at step 200" in outcome.out
    outcome = command(run.path, "--record", "--json")
    assert json.loads(outcome.out)["finding"]["step"] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning_rate=0.1"], "culprit   rate at step 1"),
        (["--activation=relu", "--learning_rate=1000"], "event     nonfinite at step"),
    ],
)
def test_the_command_in_a_process_of_its_own(tmp_path, flags, said):
    """It repeats the step of a run that broke, where nothing is loaded yet."""
    flags = [*flags, "--loss=softmax_cross_entropy", "--training_steps=60", "--run_name=run"]
    programs.train(*flags, f"--logdir={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "lab.diagnosis.main", str(tmp_path / "run")],
        capture_output=True, text=True, env=programs.ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout and "the step was repeated" in done.stdout


@pytest.mark.parametrize(
    "words, said", [([], "the following"), (["nowhere"], "is not a run"), (["a", "-x"], "-x")]
)
def test_a_wrong_command_line_ends_in_one_line(words, said):
    outcome = command(*words)
    assert outcome.status == 2
    assert said in outcome.err
    assert outcome.err.startswith("why: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedule_is_the_optimizers(decay, warmup):
    rule = optimizers.SGD(1.0, warmup=warmup, decay=decay)
    w = tf.Variable(0.0)
    optimizer = optimizers.Optimizer(rule, [w], total_steps=20)
    one = tf.constant(1.0)
    expected = [optimizer.change(w, (), one, tf.constant(float(t)))[0] for t in range(1, 21)]
    config = {"warmup_steps": warmup, "learning_rate_decay": decay, "training_steps": 20}
    found = chain._shares(config, np.arange(1, 21))
    np.testing.assert_allclose(found, np.float32(expected), atol=1e-6)


def test_examples_are_drawn():
    image = np.zeros((28, 28), np.float32)
    image[4:8, 10:20] = 7.0
    expected = [" " * 28 if row not in (2, 3) else " " * 10 + "@" * 10 for row in range(14)]
    rows = [line.rstrip() for line in expected]
    assert pictures.side_by_side(image.reshape(1, 784)) == rows
    assert pictures.side_by_side(np.stack([image] * 3, axis=2)[None]) == rows
    assert pictures.side_by_side(np.stack([image, image]))[2].count("@") == 20
    assert pictures.side_by_side(np.full((1, 28, 28), np.nan, np.float32))[0] == "@" * 28
    for x in (np.zeros((2, 10)), np.zeros((0, 28, 28)), np.zeros((1, 784), "U1")):
        assert pictures.side_by_side(x) == []


class Falling(tf.Module):
    """A weight that its loss, log(w), drives below 0."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(1.0)

    def __call__(self, x):
        return self.w + 0 * x[:, :1]


def test_the_first_operation_that_is_not_finite(tmp_path):
    run = lab.train(
        model=Falling,
        data=lab.Data(np.ones((8, 2), np.float32), np.zeros(8, np.float32)),
        loss=lambda y, output: tf.math.log(output[:, 0]),
        optimizer=lab.SGD(0.3),
        xla="off",
        reduction="mean",
        batch_size=8,
        steps=6,
        logdir=str(tmp_path),
        verbose=False,
    )
    w, step = 1.0, 1
    while w > 0:
        w, step = w - 0.3 / w, step + 1
    with run.before(step) as rerun:
        assert rerun.first_nonfinite() == ("Log", "forward pass")
    with run.before(step - 1) as rerun:
        assert rerun.first_nonfinite() == ("", "")
    found = run.why()
    assert found.event.kind == "nonfinite"
    assert found.finding.facts["operation"] == "Log"


@pytest.mark.slow
def test_what_a_step_does_to_all_outputs_alike(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(1, 0.2, (64, 5)).astype(np.float32)
    run = lab.train(
        model=lambda: lab.layers.Dense(5, 3, seed=(0, 1)),
        data=lab.Data(x, random.integers(0, 3, 64).astype(np.int32)),
        loss="softmax_cross_entropy",
        optimizer=lab.SGD(50.0),
        batch_size=64,
        steps=40,
        logdir=str(tmp_path),
        verbose=False,
    )
    found = run.why().finding
    assert (found.kind, found.step) == ("rate", 1)
    moment = run.at(1)
    change = -x[moment.examples] @ moment.updates["weights"] - moment.updates["bias"]
    share = np.sum(change.mean(0) ** 2) / np.mean(np.sum(change**2, axis=1))
    assert found.facts["common"] == pytest.approx(share, rel=1e-4)


def test_a_curved_loss_is_no_wrong_gradient():
    """The slope of `curved` is another at each distance, as in a softmax that has saturated."""

    class Rerun:
        def __init__(self):
            self.weights = {"curved": np.zeros(1), "plain": np.ones(2), "negated": np.ones(2)}

        def parts(self):
            plain = np.full(2, 0.5)
            return types.SimpleNamespace(
                gradients={"curved": np.array([30.0]), "plain": plain, "negated": -plain}
            )

        def losses(self, changed):
            at = self.weights | changed
            return 0.1 * np.sin(300 * at["curved"]) + 0.5 * (at["plain"] + at["negated"]).sum()

    assert experiment.wrong_gradients(Rerun()) == {"negated": pytest.approx(-1)}
