"""Questions 4 and 5, of several networks and of a path: against loops and known answers."""

import itertools

import numpy as np
import numpy_network
import pytest
from test_analysis_model import examples, make, model_for

from lab.analysis import drift, sameness
from lab.analysis.weights import Weights, distance

pytestmark = pytest.mark.numbers

# Question 4


def test_independent_errors_disagree_as_the_formula_says():
    rng = np.random.default_rng(0)
    n, classes = 400_000, 5
    labels = rng.integers(0, classes, n)

    def classify(error):
        wrong = (labels + rng.integers(1, classes, n)) % classes
        return np.where(rng.random(n) < error, wrong, labels)

    a, b = classify(0.3), classify(0.6)
    found = sameness.disagreement(a, b, labels, classes)
    assert found.share == np.mean(a != b)
    assert found.independent == pytest.approx(1 - 0.7 * 0.4 - 0.18 / 4, abs=0.003)
    assert found.share == pytest.approx(found.independent, abs=0.003)
    assert found.both_wrong == pytest.approx(found.both_wrong_independent, abs=0.003)
    same = sameness.disagreement(a, a, labels, classes)
    assert same.share == 0 and same.independent > 0.4 and same.both_wrong == np.mean(a != labels)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_permuted_units_are_the_same_function(activation):
    rng = np.random.default_rng(1)
    weights = make(rng, (20, 30, 40, 10))
    x, _ = examples(rng, 50, 20)
    permutations = sameness.random_permutations(weights, rng)
    other = sameness.permute_hidden(weights, permutations)
    *mine, z = numpy_network.forward(weights, activation, x)[1:]
    *theirs, permuted = numpy_network.forward(other, activation, x)[1:]
    for a, b, p in zip(mine, theirs, permutations, strict=True):
        np.testing.assert_allclose(b, a[:, p], rtol=1e-9)
    np.testing.assert_allclose(permuted, z, rtol=1e-9, atol=1e-9)
    found = sameness.symmetry(model_for(weights, activation), weights, x, rng)
    assert found.logits_change < 1e-5
    flat = [np.concatenate([np.float64(w).ravel() for w in n.values()]) for n in (weights, other)]
    assert found.norm == pytest.approx(np.linalg.norm(flat[0]))
    assert distance(weights, other) == pytest.approx(np.linalg.norm(flat[0] - flat[1]))
    assert found.distance > found.norm


def test_symmetry_sees_rows_that_did_not_follow(monkeypatch):
    rng = np.random.default_rng(1)
    weights = make(rng, (20, 30, 40, 10))

    def half(weights, permutations):
        return weights.replace({"h1/weights": weights["h1/weights"][:, permutations[0]]})

    monkeypatch.setattr("lab.analysis.sameness.permute_hidden", half)
    x, _ = examples(rng, 50, 20)
    assert sameness.symmetry(model_for(weights), weights, x, rng).logits_change > 0.01


@pytest.mark.parametrize("sizes", [(20, 4), (20, 30, 4), (20, 30, 40, 25, 4)])
def test_a_permuted_copy_has_barrier_0_after_matching(sizes):
    """And before it a barrier, unless nothing can be permuted."""
    rng = np.random.default_rng(2)
    weights = make(rng, sizes, scale=0.5)
    model = model_for(weights, "tanh")
    x, _ = examples(rng, 500, 20)
    labels = model.logits(weights, x).argmax(axis=1)
    copy = sameness.permute_hidden(weights, sameness.random_permutations(weights, rng))
    before = sameness.barrier(model, weights, copy, x, labels, 11)
    matched = sameness.permute_hidden(copy, sameness.match(weights, copy, rng))
    assert distance(weights, matched) == 0
    after = sameness.barrier(model, weights, matched, x, labels, 11)
    assert after.cross_entropy_barrier < 1e-6 and after.accuracy_barrier < 1e-9
    if len(sizes) > 2:
        assert before.cross_entropy_barrier > 0.1 and before.accuracy_barrier > 0.05


def test_matching_finds_the_best_of_all_permutations():
    """One hidden layer: an assignment problem, checked against every permutation."""
    rng = np.random.default_rng(3)
    a, b = (make(rng, (4, 6, 3)) for _ in range(2))
    every = (sameness.permute_hidden(b, [np.array(p)]) for p in itertools.permutations(range(6)))
    best = min(distance(a, other) for other in every)
    found = distance(a, sameness.permute_hidden(b, sameness.match(a, b, rng)))
    assert found == pytest.approx(best)
    assert found < distance(a, b)


def test_matching_ends_where_no_layer_gains():
    """Two hidden layers of 5 units: no permutation of one layer alone brings b nearer."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a, b = (make(rng, (4, 5, 5, 3)) for _ in range(2))
        found = sameness.match(a, b, rng)
        nearest = distance(a, sameness.permute_hidden(b, found))
        for layer in range(2):
            for p in itertools.permutations(range(5)):
                other = list(found)
                other[layer] = found[layer][list(p)]
                assert distance(a, sameness.permute_hidden(b, other)) > nearest - 1e-9


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), (6, 5, 7, 4)])
def test_barrier_point_by_point(sizes):
    rng = np.random.default_rng(4)
    a, b = (make(rng, sizes, scale=2.0) for _ in range(2))
    x, labels = examples(rng, 200)
    found = sameness.barrier(model_for(a, "tanh"), a, b, x, labels)
    assert len(found.places) == 11 and (found.places[0], found.places[-1]) == (0, 1)
    losses, accuracies = [], []
    for t in found.places:
        here = Weights({tag: (1 - t) * np.float64(w) + t * b[tag] for tag, w in a.items()})
        losses.append(numpy_network.cross_entropy(here, "tanh", x, labels))
        accuracies.append(numpy_network.accuracy(here, "tanh", x, labels))
    np.testing.assert_allclose(found.cross_entropy, losses, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, accuracies, atol=0.01)
    assert found.accuracy[-1] == numpy_network.accuracy(b, "tanh", x, labels)
    line = [(1 - t) * losses[0] + t * losses[-1] for t in found.places]
    rise = max(0, *(loss - at for loss, at in zip(losses, line, strict=True)))
    assert found.cross_entropy_barrier == pytest.approx(rise, abs=1e-4)
    line = [(1 - t) * accuracies[0] + t * accuracies[-1] for t in found.places]
    fall = max(0, *(at - acc for acc, at in zip(accuracies, line, strict=True)))
    assert found.accuracy_barrier == pytest.approx(fall, abs=0.01)


def test_linear_cka():
    rng = np.random.default_rng(5)
    a = rng.normal(size=(500, 20)) * np.arange(1, 21)
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    assert sameness.linear_cka(a, 3 * a @ rotation + 7) == pytest.approx(1)
    assert sameness.linear_cka(a, a * np.arange(20, 0, -1) ** 2) < 0.9  # not any linear map
    b = 0.5 * a[:, :8] + rng.normal(size=(500, 8))
    # The definition, by the Gram matrices of the examples: HSIC of centred kernels.
    centre = np.eye(500) - 1 / 500
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert sameness.linear_cka(a, b) == pytest.approx(expected)
    assert sameness.linear_cka(np.float32(a), np.float32(b)) == pytest.approx(expected, rel=1e-4)
    assert sameness.linear_cka(rng.normal(size=(5000, 5)), rng.normal(size=(5000, 5))) < 0.01
    assert np.isnan(sameness.linear_cka(a, np.ones((500, 3))))


def barriers_of(groups, items, low, high):
    """Barriers of every pair: low within a group, high across, all different."""
    pairs = list(itertools.combinations(items, 2))
    within = [any({*pair} <= {*group} for group in groups) for pair in pairs]
    return {
        pair: (low if near else high) * (1 + 0.01 * i)
        for i, (pair, near) in enumerate(zip(pairs, within, strict=True))
    }


def test_families_are_cut_at_the_widest_gap():
    found = sameness.families(barriers_of([(2, 3), (0, 1, 4)], range(6), 0.01, 0.5))
    assert found.members == [(0, 1, 4), (2, 3)] and found.below == 4 and found.whole
    assert 0.01 <= found.low < 0.012 and 0.5 <= found.high < 0.6
    # A chain: 0 and 2 are far apart, so what the low pairs connect is no family.
    chain = sameness.families({(0, 1): 0.01, (1, 2): 0.011, (0, 2): 0.9})
    assert chain.members == [(0, 1, 2)] and chain.below == 2 and not chain.whole
    assert sameness.families({(0, 1): 0.01}) is None
    assert sameness.families(dict.fromkeys(itertools.combinations(range(4), 2), 0.2)) is None
    # Below a thousandth of a nat there are no gaps.
    tiny = sameness.families({(0, 1): 1e-9, (1, 2): 1e-4, (0, 2): 0.002})
    assert tiny.below == 2 and tiny.low == 1e-3


@pytest.mark.parametrize(("seeds", "lowest"), [(3, 0.5), (5, 0.5), (3, 0.01), (5, 0.01)])
def test_barriers_without_families_seldom_have_a_gap_beyond_chance(seeds, lowest):
    rng, pairs = np.random.default_rng(0), list(itertools.combinations(range(seeds), 2))
    draws = [sameness.families({pair: rng.uniform(lowest, 0.6) for pair in pairs})
             for _ in range(300)]  # fmt: skip
    assert sum(found.p <= 0.05 for found in draws) <= 0.09 * 300  # 0.05, and three standard errors
    own = [(0, 1), tuple(range(2, seeds))] if seeds > 3 else [(0, 1)]
    assert sameness.families(barriers_of(own, range(seeds), 0.01, 0.5)).p <= 0.05


def test_the_test_of_families_counts_every_way_to_deal_them():
    rng, items = np.random.default_rng(0), (3, 5, 6, 8, 9, 11)
    likeness = {pair: rng.random() for pair in itertools.combinations(items, 2)}

    def difference(groups):
        within = {pair for pair in likeness if any({*pair} <= {*group} for group in groups)}
        values = [likeness[p] for p in within], [likeness[p] for p in likeness.keys() - within]
        return np.mean(values[0]) - np.mean(values[1])

    own = [(3, 6, 8), (5, 9)]
    ways = [
        difference([three, two])
        for three in itertools.combinations(items, 3)
        for two in itertools.combinations([i for i in items if i not in three], 2)
    ]
    assert len(ways) == 60
    found = sameness.divided(likeness, own)
    assert found.difference == pytest.approx(difference(own))
    assert found.p == pytest.approx(np.mean(np.array(ways) >= difference(own) - 1e-12))
    known = barriers_of(own, items, 0.9, 0.1)
    assert sameness.divided(known, own).p == pytest.approx(1 / 60)
    many = barriers_of([range(5), range(5, 10)], range(10), 0.9, 0.1)  # too many to count them all
    assert sameness.divided(many, [range(5), range(5, 10)]).p == pytest.approx(1 / 126, abs=0.006)


# Question 5

STEPS = np.arange(0, 3001)


@pytest.mark.parametrize("power", [0.02, 0.25, 0.5, 1.0])
def test_growth_exponent_of_a_power_law(power):
    noise = np.random.default_rng(6).normal(0, 0.001, len(STEPS))
    noise[0] = 1000  # step 0 has no logarithm, and no part in it
    d = 0.3 * np.maximum(STEPS, 1) ** power
    assert drift.growth_exponent(STEPS, d + noise) == pytest.approx(power, abs=0.005)


def test_growth_exponent_is_the_best_of_all():
    t = np.arange(1, 500)
    d = 3 + 2 * np.log(t)  # no power law
    chosen = drift.thin(t)
    powers = np.linspace(0, 1, 2001)
    errors = []
    for p in powers:
        column = np.float64(t[chosen])[:, None] ** p
        errors.append(np.linalg.lstsq(column, d[chosen], rcond=None)[1][0])
    assert drift.growth_exponent(t, d) == pytest.approx(powers[np.argmin(errors)], abs=1e-3)
    assert np.isnan(drift.growth_exponent(t, np.zeros(499)))


def test_thin_takes_steps_that_are_there():
    chosen = drift.thin(STEPS)
    assert STEPS[chosen][0] == 1 and STEPS[chosen][-1] == 3000 and np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(drift.thin(np.array([1, 10, 100, 1000]), 4), np.arange(4))
    assert len(drift.thin(np.array([0]))) == 0


def test_drift_ratio():
    rng = np.random.default_rng(8)
    walk = rng.normal(size=(400, 3000)) * rng.uniform(0.1, 2, (400, 1))
    norms = np.linalg.norm(walk, axis=1)
    assert drift.drift_ratio(np.linalg.norm(walk.sum(axis=0)), norms) == pytest.approx(1, abs=0.05)
    assert drift.drift_ratio(400 * 0.5, np.full(400, 0.5)) == pytest.approx(np.sqrt(400))
    assert drift.drift_ratio(0, np.ones(4)) == 0
    assert np.isnan(drift.drift_ratio(0, np.zeros(4)))


def test_late_trend():
    values = np.where(STEPS < 2000, 100.0, 3 + 0.01 * (STEPS - 2000))
    found = drift.late_trend(STEPS, values)
    assert found.slope == pytest.approx(0.01)
    assert found.change == pytest.approx(10 / 8)
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=50)
    part = drift.late_trend(np.arange(0, 500, 10), noisy, 1 / 2)
    expected = np.polyfit(np.arange(0, 500, 10)[25:], noisy[25:], 1)[0]
    assert part.slope == pytest.approx(expected)
    with pytest.raises(ValueError, match="2 are required"):
        drift.late_trend(np.array([0, 100]), np.zeros(2))
