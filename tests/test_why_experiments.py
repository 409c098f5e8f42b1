"""What bin/why says of runs whose loop has a fault, and whether the run without it is rid of it."""

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf

import lab
from bench import faults_plant as plant

pytestmark = pytest.mark.slow
SEED = 0


@pytest.fixture
def diagnosed(tmp_path):
    """A function from a fault's name to the fault and what is said of a network with it."""

    def train(name, network="mlp", seed=SEED):
        fault = plant.choose(name, network, seed)
        with plant.planted(fault):
            run = plant.train(network, seed, fault, str(tmp_path), devices="cpu:1")
            return fault, run, run.why(experiments=True)

    return train


def test_shares_of_the_examples(diagnosed):
    """Of the loss and of the gradient: against the gradient of each example."""
    fault, run, found = diagnosed("examples times 100")
    assert found.finding.rows == fault.examples
    rows = list(found.finding.rows)
    network = plant.NETWORKS["mlp"](SEED)
    with run.before(fault.step) as rerun:
        for tag, variable in zip(rerun.weights, network.trainable_variables, strict=True):
            assert variable.shape == rerun.weights[tag].shape
            variable.assign(rerun.weights[tag])
        x, y = rerun.batch()
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(
            y, network(tf.constant(x)), from_logits=True
        )
    each = tape.jacobian(losses, network.trainable_variables)
    each = np.concatenate([one.numpy().reshape(len(x), -1) for one in each], axis=1)
    along = each @ each.sum(axis=0)
    facts = found.finding.facts
    assert facts["gradient_share"] == pytest.approx(along[rows].sum() / along.sum(), rel=0.02)
    expected = losses.numpy()[rows].sum() / losses.numpy().sum()
    assert facts["loss_share"] == pytest.approx(expected, rel=1e-4)
    assert len(facts["pictures"]) == 14


def test_wrong_labels_that_the_loss_does_not_show(diagnosed):
    """Found by the examples' own losses, as the batch's loss stays in its range."""
    fault, run, found = diagnosed("wrong labels", seed=104)
    assert run.why().event is None
    assert (found.finding.kind, found.finding.step) == ("batch", fault.step)
    named, planted = set(found.finding.rows), set(fault.examples)
    assert len(named & planted) >= 0.9 * len(named)
    assert len(named) >= len(planted) / 2


def test_a_nan_pixel_is_gone_without_its_batch(diagnosed):
    fault, run, found = diagnosed("a NaN pixel", "transformer")
    assert run.result["status"] == "nonfinite"
    assert (found.finding.step, found.finding.rows) == (fault.step, fault.examples)
    assert found.outcome.gone


@pytest.mark.parametrize("name", ["rate times 30", "second moment reset"])
def test_an_update_that_is_not_the_rule_s(diagnosed, name):
    fault, _, found = diagnosed(name)
    assert (found.finding.kind, found.finding.step) == (plant.FAULTS[name], fault.step)
    assert found.outcome.gone
    assert found.outcome.worst < found.outcome.before


def test_an_epsilon_of_0(diagnosed):
    """Without that one step the run goes on: entries without any gradient come up again later."""
    fault, run, found = diagnosed("epsilon 0")
    assert run.result["status"] == "nonfinite"
    assert (found.finding.kind, found.finding.step) == ("epsilon", fault.step)


def test_a_gradient_that_points_uphill(diagnosed):
    fault, run, found = diagnosed("gradient negated")
    assert (found.finding.kind, found.finding.step) == ("gradient", fault.step)
    assert found.finding.tensors == (fault.tensor,)
    with run.before(fault.step) as rerun:
        parts, weights = rerun.parts(), rerun.weights[fault.tensor]
        gradient = parts.gradients[fault.tensor]
        uphill = rerun.losses({fault.tensor: weights - 1e-2 * gradient}).mean()
        assert uphill > rerun.losses().mean()


def test_a_weight_that_another_wrote(diagnosed):
    fault, run, found = diagnosed("flipped exponent bit")
    assert (found.finding.kind, found.finding.step) == ("weight", fault.step)
    assert found.finding.tensors == (fault.tensor,)
    moment = run.at(fault.step)
    moved = moment.weights[fault.tensor] - moment.before[fault.tensor]
    strange = np.abs(moved + moment.updates[fault.tensor]) > 1e-3
    assert strange.sum() == 1


@pytest.mark.parametrize(("rate", "gone"), [(0.1, True), (1.0, False)])
def test_a_tenth_of_an_update(tmp_path, rate, gone):
    """The loss leaves before there are ranges, and stays away. A rate of 0.01 is a moderate one,
    0.1 is not."""
    flags = [f"--learning_rate={rate}", "--training_steps=60", "--run_name=run"]
    assert programs.train(*flags, f"--logdir={tmp_path}").status == 0
    run = lab.open_run(str(tmp_path / "run"))
    found = run.why(experiments=True)
    assert found.finding.kind == "rate" and "logits/weights" in found.finding.tensors
    assert found.outcome.gone is gone
    assert found.outcome.before > 5
    assert (found.outcome.worst < 3) is gone
    assert f"{found.outcome.worst:.3g} times" in str(found)
    if gone:  # plain sgd: a tenth of each update is a tenth of the rate
        assert programs.train("--learning_rate=0.01", "--training_steps=60", "--run_name=tenth",
                              f"--logdir={tmp_path}").status == 0  # fmt: skip
        tenth = lab.open_run(str(tmp_path / "tenth")).scalar("loss").values
        with run.before(1) as rerun:
            np.testing.assert_allclose(rerun.onward(34, 34, 0.1), tenth[:34], rtol=1e-3)


def test_nothing_without_a_fault(tmp_path):
    run = plant.train("mlp", 1, None, str(tmp_path), devices="cpu:1")
    assert run.why(experiments=True).event is None


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_scores_that_grow(tmp_path, qk_norm):
    """Of a transformer without a LayerNorm of queries and keys, at a rate that is too high: the
    loss falls no more. With one it does."""
    run = lab.train(
        model=lambda: lab.models.Transformer(width=32, seed=1, qk_norm=qk_norm, probe_scores=True),
        data="mnist",
        loss="softmax_cross_entropy",
        reduction="mean",
        optimizer=lab.Adam(0.1, warmup=50),
        batch_size=64,
        steps=600,
        watch="norms,probes",
        logdir=str(tmp_path),
        verbose=False,
    )
    found, loss = run.why(repeat=False), run.scalar("loss").values
    if qk_norm:
        assert not (found.event and found.event.visible)
        assert np.median(loss[-50:]) < np.median(loss[50:100]) / 1.5
        return
    assert found.event.visible and found.finding.kind == "growth"
    assert found.finding.tensors[0].startswith("scores")
    assert np.median(loss[-50:]) > np.median(loss[50:100]) / 1.2
    largest = run.scalar(f"{found.finding.tensors[0]}/largest").values
    assert largest[-1] > 100 * largest[0]
