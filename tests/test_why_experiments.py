"""What bin/why says of runs whose loop has a fault, and whether the run without it is rid of it."""

import numpy as np
import pytest

from bench import faults_plant as plant

pytestmark = pytest.mark.slow
SEED = 0


@pytest.fixture
def diagnosed(tmp_path):
    """A function from a fault's name to the fault and what is said of an mlp with it."""

    def train(name):
        fault = plant.choose(name, "mlp", SEED)
        with plant.planted(fault):
            run = plant.train("mlp", SEED, fault, str(tmp_path), devices="cpu:1")
            return fault, run, run.why(experiments=True)

    return train


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


def test_nothing_without_a_fault(tmp_path):
    run = plant.train("mlp", 1, None, str(tmp_path), devices="cpu:1")
    assert run.why(experiments=True).event is None
