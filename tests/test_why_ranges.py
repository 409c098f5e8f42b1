"""Ranges, levels and growth of series that NumPy makes, without any run."""

import types

import numpy as np
import pytest
from scipy import signal, stats

from lab.diagnosis.growth import course, grown
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


# ------------------------------------------------------------------ levels and growth


def record(loss=None, probe=None):
    """What a Chain has, of a loss and of a probe: float64 [steps]."""
    steps = np.arange(1, len(probe if loss is None else loss) + 1)
    probes = np.zeros((len(steps), 0)) if probe is None else probe[:, None]
    return types.SimpleNamespace(
        steps=steps, loss=np.full(len(steps), np.nan) if loss is None else loss, tensors=[],
        probes=["scores"] * probes.shape[1], probe=probes, weight=np.zeros((len(steps), 0)),
        began_at_0=np.zeros(0, bool),
    )  # fmt: skip


def wandering(seed, steps=600, carried=0.5):
    """Noise of spread 0.3, half of which carries on to the next step."""
    random = np.random.default_rng(seed)
    return signal.lfilter([0.3 * np.sqrt(1 - carried**2)], [1, -carried], random.normal(size=steps))


@pytest.mark.parametrize("steps", [150, 600])
def test_noise_is_no_rise_and_no_growth(steps):
    """Neither where it carries on from step to step, in at most the stated share of the runs."""
    rises = sum(course(record(np.exp(wandering(s, steps)))).rise > 0 for s in range(100))
    assert stats.binomtest(rises, 100, FALSE_ALARMS, "greater").pvalue > 0.001
    large = (record(probe=np.exp(5 * wandering(s, steps))) for s in range(100))
    grew = sum(grown(one, steps) is not None for one in large)
    assert stats.binomtest(grew, 100, FALSE_ALARMS, "greater").pvalue > 0.001


@pytest.mark.parametrize("seed", range(5))
def test_a_rise_below_the_noise_of_single_steps(seed):
    """By 0.7 in logarithms in the last 150 steps, where single steps are off by 0.3: three times as
    much is 0.9."""
    t = np.arange(600)
    mean = np.where(t < 450, -t / 450, 0.7 * np.minimum((t - 450) / 50, 1) - 1)
    found = course(record(np.exp(mean + wandering(seed, carried=0.0))))
    assert found.rise == pytest.approx(0.7, abs=0.4)
    assert found.left == pytest.approx(450, abs=64)
    assert found.since == pytest.approx(450 * 0.3, abs=100)
    assert found.share == pytest.approx(1 - found.since / 600, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_growth_that_single_steps_hide(seed):
    """By 1.5% a step, where single steps are off by a third; until it ends."""
    growth = 0.015 * np.minimum(np.arange(400), 360)
    found = grown(record(probe=np.exp(growth + wandering(seed, 400))), 401)
    assert found.times == pytest.approx(np.exp(growth[-1] - growth[200]), rel=0.5)
    assert found.rate == pytest.approx(np.expm1(0.015), rel=0.4)


def test_a_jump_is_no_growth():
    values = np.exp(wandering(0))
    values[500:] *= 1e6
    assert grown(record(probe=values), 600) is None
