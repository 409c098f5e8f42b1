"""Ranges and events of series that NumPy makes, without any run."""

import numpy as np
import pytest
from scipy import stats

from lab.diagnosis.ranges import CENTRE, FALSE_ALARMS, FIRST, WINDOW, ranges


def noise(seed, steps=600, series=1, spread=0.3):
    return np.exp(np.random.default_rng(seed).normal(0, spread, (steps, series)))


def test_deviations_are_those_of_running_medians():
    values = noise(1, 200, 2)
    logs, found = np.log(values), ranges(values)
    for t in (FIRST, CENTRE + 5, 150):
        errors = [
            logs[s] - np.median(logs[max(s - CENTRE, 0) : max(s, 1)], axis=0)
            for s in range(max(t - WINDOW, 0), t + 1)
        ]
        scale = stats.median_abs_deviation(
            np.concatenate([errors[:-1], -np.array(errors[:-1])]), axis=0, center=lambda x, axis: 0
        )
        assert found.z[t] == pytest.approx(errors[-1] / (1.4826 * scale), rel=1e-6)


def test_quiet_series_stay_in_their_range():
    """Heavy tails, a trend and a schedule are no events: at most the stated rate of them is."""
    alarms = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        heavy = np.exp(0.1 * random.standard_t(8, (500, 6)) - 0.004 * np.arange(500)[:, None])
        alarms += ranges(heavy).out.any()
    # The number of runs with an alarm is binomial, if the rate is as stated.
    assert stats.binomtest(int(alarms), 40, FALSE_ALARMS, "greater").pvalue > 0.001


@pytest.mark.parametrize("factor", [10, 100])
def test_a_jump_leaves_the_range_at_its_step(factor):
    values = noise(3, series=4)
    values[400, 2] *= factor
    rows, columns = np.nonzero(ranges(values).out)
    assert (rows.tolist(), columns.tolist()) == ([400], [2])


def test_later_steps_change_nothing_before():
    values = noise(5, series=3)
    changed = values.copy()
    changed[300:] *= 1000
    one, other = ranges(values), ranges(changed)
    assert np.array_equal(one.z[:300], other.z[:300])
    assert np.array_equal(one.limits[:300], other.limits[:300])


def test_constant_zero_and_nonfinite_values_do_not_alarm():
    values = np.ones((300, 4))
    values[:, 1] = 0
    values[100:120, 2] = 0
    values[200, 3] = np.nan
    assert not ranges(values).out.any()


def test_no_steps_and_no_series():
    assert ranges(np.zeros((0, 3))).z.shape == (0, 3)
    assert ranges(np.zeros((5, 0))).z.shape == (5, 0)
