"""The report's figures and outcomes: against scipy, NumPy and cases with known answers."""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import scipy.special
import scipy.stats
import small_runs

from lab.analysis.drift import Phases, phases, spans
from lab.analysis.runs import Group, Run, Runs, read_runs
from lab.analysis.sameness import disagreement
from lab.analysis.sharpness import Eigenvalue
from lab.analysis.study import DRAWS, Evidence, measure
from lab.analysis.weights import Weights
from lab.analysis.workers import Workers
from lab.compare import table as results
from lab.compare.results import parse_result
from lab.diagnosis.culprit import Finding
from lab.diagnosis.events import Event
from lab.diagnosis.why import Diagnosis, diagnose
from lab.record.run import RunReader
from lab.report import draft
from lab.report.figures import (
    above,
    across,
    all_of,
    command,
    curve,
    listed,
    over_pairs,
    percent,
    some_of,
    with_interval,
)
from lab.report.questions.broke import broke
from lab.report.questions.common import over_draws, seeds_halved
from lab.report.questions.q1_layers import _RESETS, _judge, _lost, layers
from lab.report.questions.q2_distribution import distribution
from lab.report.questions.q3_zeros import zeros
from lab.report.questions.q4_sameness import _errors, _shared
from lab.report.questions.q5_growth import _decayed, _shuffled, growth
from lab.report.questions.readme_table import table
from lab.report.section import Bars, Chart, Figure, Tiles
from lab.report.story import make_story
from lab.settings import command_line
from lab.settings.config import Config

# What runs differ in from the reference of small_runs, for some gap.
ABOUT = [
    *(set(), {"learning_rate"}, {"learning_rate", "loss"}, {"microbatches", "watch"}),
    *({"init_stddev"}, {"learning_rate", "shuffle_labels"}, {"learning_rate_decay"}),
]
SLUGS = ["table", "broke", "layers", "distribution", "zeros", "sameness", "growth"]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    return small_runs.trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def evidence(logdir):
    return measure(read_runs(str(logdir)))


@pytest.fixture(scope="module")
def story(logdir):
    return make_story(read_runs(str(logdir)))


def section(story, slug):
    return next(one for one in story.sections if one.slug == slug)


def value(story, slug, key):
    return next(figure for figure in section(story, slug).figures if figure.key == key)


def control(story, slug, key):
    return next(one for one in section(story, slug).controls if one.key == key)


# ------------------------------------------------------------------ words


def test_intervals_over_runs_are_scipys():
    values = [0.97, 0.975, 0.981, 0.969]
    found = across("key", "name", values)
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9)
    assert found.value == pytest.approx(np.mean(values)) and found.runs == 4
    assert across("", "", [1, 3, math.nan]).runs == 2
    assert across("", "", [2.5]).low is None and across("", "", [math.inf]).value is None
    assert across("", "", [0.0, 0.1]).low < 0
    ends = across("", "", [-90.0, 95.0], "points")  # of accuracies that are 0 and 1 at most
    assert (ends.low, ends.high) == (-100, 100)
    (pair,) = results.compare([{0: 0.9, 1: 0.1}, {0: 0.1, 1: 0.9}], ["mnist", "mnist"])
    assert (pair.low, pair.high) == (-1, 1)


@pytest.mark.parametrize("values", [[0.97, 0.975, 0.981, 0.969], [0.0, 0.02, 0.3], [0.4, 0.5]])
def test_intervals_of_shares_are_those_of_their_logits(values):
    """To first order: of the logit of the mean, by the delta method; never beyond 0 or 1."""
    mean, error = np.mean(values), scipy.stats.sem(values)
    slope = (scipy.special.logit(mean + 1e-6) - scipy.special.logit(mean - 1e-6)) / 2e-6
    middle, df = scipy.special.logit(mean), len(values) - 1
    expected = scipy.special.expit(scipy.stats.t.interval(0.95, df, middle, error * slope))
    found = across("", "", values, "%")
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-5, atol=1e-12)
    assert found.value == pytest.approx(mean) and 0 < found.low < mean < found.high < 1
    done = {"status": "completed", "step": 1, "test_total": 1000}
    runs = [done | {"config": {"seed": i}, "test_correct": round(1000 * v)}
            for i, v in enumerate(values)]  # fmt: skip
    (row,) = results.make_table(parse_result(json.dumps(run), "run") for run in runs).rows
    assert (row.low, row.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert across("", "", [1.0, 1.0], "%").low == across("", "", [1.0, 1.0], "%").high == 1
    pairs = dict(zip([(0, 1), (0, 2), (1, 2)], [*values, 0.9][:3], strict=True))
    one, other = over_pairs("", "", pairs, "%"), over_pairs("", "", pairs, share=True)
    assert (one.low, one.high) == (other.low, other.high) and 0 <= one.low < one.high <= 1


def test_the_interval_of_a_random_control_holds_the_spread_over_draws(evidence):
    """A one-way random-effects model: the mean square between runs over all draws."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.5, 0.01, (6, 1)) + rng.normal(0, 0.05, (6, 5))
    found = over_draws(draft.Draft("layers", evidence), "key", "name", draws)
    between = 5 * np.sum((draws.mean(axis=1) - draws.mean()) ** 2) / 5  # m sum / (n - 1)
    error = np.sqrt(between / draws.size)
    expected = scipy.stats.t.interval(0.95, 5, draws.mean(), error)
    np.testing.assert_allclose([found.low, found.high], expected)
    within = np.sqrt(np.mean(draws.var(axis=1, ddof=1)))
    assert found.note == f"5 draws a run, their standard deviation {within:.2g}"
    shares = over_draws(draft.Draft("layers", evidence), "key", "name", draws, "%", "of all")
    assert (
        shares.note == f"of all; 5 draws a run, their standard deviation {100 * within:.2g} points"
    )
    # With means of draws that do not differ the runs' own variance is left.
    still = over_draws(draft.Draft("layers", evidence), "", "", np.repeat(draws[:, :1], 5, 1))
    other = across("", "", draws[:, 0])
    assert (still.low, still.high) == pytest.approx((other.low, other.high))


@pytest.mark.parametrize(
    ("claims", "passed"),
    [("aaaaa", True), ("aaabb", False), ("aaa", None), ("aaaNN", None), ("bbbaa", False)],
)
def test_an_answer_stands_in_both_halves_of_the_seeds_or_fails(evidence, claims, passed):
    runs = dict(enumerate(claims))

    def judge(some):
        most = max(sorted(set(some.values())), key=[*some.values()].count)
        return None if most == "N" else most, f"{len(some)} runs"

    own = draft.Draft("layers", evidence)
    seeds_halved(own, runs, judge)
    (found,) = own.controls
    assert found.passed is passed
    if len(claims) > 3:
        assert found.outcome == "Seeds 0, 1 and 2: 3 runs. Seeds 3 and 4: 2 runs."


def test_which_layers_matter_is_what_every_reset_says():
    def judge(**left):  # by layer: put back, weights alone, drawn, weights drawn
        kinds = ("both", "weights", "redrawn", "redrawn_weights")
        means = {key: {n: left[n][i] for n in left} for i, key in enumerate(kinds)}
        return _judge(means, 0.97, 0.11)

    lost, kept, same = (0.12, 0.1, 0.1, 0.1), (0.36, 0.1, 0.1, 0.1), (0.97, 0.969, 0.965, 0.97)
    assert judge(h1=kept, h2=lost) == ("none_spared", ("h2",))
    assert judge(h1=kept, h2=same) == ("spared", ())
    assert judge(h1=same, h2=same) == ("all_spared", ())
    assert judge(h1=kept, h2=(0.97, 0.5, 0.1, 0.1)) == ("depends", ())
    assert _judge({k: {"h1": 0.1} for k in _RESETS}, 0.12, 0.11).outcome == "at_chance"


def test_only_chance_is_left_where_the_whole_interval_is_there():
    def lost(*runs):  # accuracies by run, after the reset that leaves most
        kinds = {key: {"h1": across("", "", [0.1, 0.1], "%")} for key in _RESETS}
        return _lost(kinds | {"redrawn": {"h1": across("", "", runs, "%")}}, "h1", 0.11)

    assert lost(0.11, 0.115, 0.112, 0.12) is True
    assert lost(0.1, 0.12, 0.1, 0.25) is None and np.mean([0.1, 0.12, 0.1, 0.25]) < 0.15
    assert lost(0.3, 0.31, 0.29, 0.3) is False
    assert lost(0.12) is True and lost(0.3) is False  # without an interval


def test_what_is_at_chance_cannot_fall(evidence):
    """Runs whose accuracies are no more than chance, before and after any change of weights."""

    def dull(measured):
        shuffles = [one._replace(accuracy=np.full(DRAWS, 0.25)) for one in measured.shuffles]
        resets = [r._replace(rewound=0.25, redrawn=np.full(DRAWS, 0.25)) for r in measured.resets]
        curves = ("smallest", "compensated", "random")
        same = {key: np.full_like(getattr(measured.pruning, key), 0.25) for key in curves}
        pruning = measured.pruning._replace(**same)
        return measured._replace(accuracy=0.25, shuffles=shuffles, resets=resets, pruning=pruning)

    measured = {
        path: one._replace(on_images=one.on_images and dull(one.on_images))
        for path, one in evidence.measured.items()
    }
    changed = evidence._replace(measured=measured)
    for ask, keys in (
        (layers, ["each_draw", "own_start:h1", "own_start:h2"]),
        (distribution, ["shuffled"]),
        (zeros, ["pruning"]),
    ):
        assert {c.passed for c in ask(changed).controls if c.key in keys} == {None}
    assert layers(changed).outcome == "at_chance"


def test_that_two_seeds_are_too_few_is_said(evidence):
    """Which is another reason than that of three whose interval holds both."""
    labels = np.arange(40) % 4
    wrong = [np.where(np.arange(40) % 10 == k, 9, labels) for k in range(3)]
    answers = []
    for seeds in (2, 3):
        pairs = itertools.combinations(range(seeds), 2)
        found = {pair: disagreement(*(wrong[k] for k in pair), labels, 10) for pair in pairs}
        outcome, facts = _errors(sketch := draft.Draft("sameness", evidence), found)
        assert outcome == ("cannot_tell" if seeds == 2 else "not_same")
        answers.append(sketch._text(facts, "answer_cannot_tell"))
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("predicted", "outcome"),
    [
        ([0, 0, 0], "cannot_tell"),  # they never err
        ([1, 2, 3], "not_same"),  # on the same images, but each in its own way
        ([1, 1, 1], "nearly_same"),
    ],
)
def test_seeds_that_err_in_different_ways_are_not_the_same_function(evidence, predicted, outcome):
    labels = np.zeros(40, int)
    own = [np.where(np.arange(40) < 36, one, labels) for one in predicted]
    found = {(a, b): disagreement(own[a], own[b], labels, 4)
             for a, b in itertools.combinations(range(3), 2)}  # fmt: skip
    assert _errors(draft.Draft("sameness", evidence), found)[0] == outcome


@pytest.mark.parametrize(("rank", "little"), [(2, True), (5, False), (10, False)])
def test_few_directions_are_few_beside_those_of_the_layers(evidence, rank, little):
    """Of 8 and 6 units: all that is cut to 5 or more is nearly whole, or whole."""
    measured = {
        path: one._replace(on_images=m._replace(
            accuracy=0.9, shuffles=[s._replace(accuracy=s.accuracy * 0) for s in m.shuffles],
            low_rank=[low._replace(accuracy=0.9 * (low.rank >= rank)) for low in m.low_rank]))
        for path, one in evidence.measured.items() if (m := one.on_images)
    }  # fmt: skip
    found = distribution(evidence._replace(measured=evidence.measured | measured))
    assert (f"{rank} directions" in found.evidence) is little
    assert found.outcome == "all_lost"


def test_weight_decay_moves_what_gets_no_gradient(evidence):
    config = evidence.reference.config | {"weight_decay": 0.3}
    group = dataclasses.replace(evidence.reference, config=config)
    runs = dataclasses.replace(evidence.runs, groups=[group])
    decayed = evidence._replace(runs=runs, reference=group, featured=[group])
    for ask, key in ((zeros, "never_lit"), (growth, "unlit")):
        left, kept = ({one.key for one in ask(e).controls} for e in (decayed, evidence))
        assert key in kept - left


def test_sharpness_is_above_or_below_its_limit_where_the_interval_is(evidence):
    """2/rate of the reference is 2: its rate is 1, on the mean loss."""

    def sides(*values):
        runs = evidence.reference.completed
        measured = {
            run.path: evidence.of(run)._replace(sharpness=Eigenvalue(value, 0.0))
            for run, value in zip(runs, values, strict=True)
        }
        found = growth(evidence._replace(measured=evidence.measured | measured))
        see = next(p.see for p in found.pictures if p.slug == "sharpness")
        return {side: f"{side} 2/rate in sgd 1" in see for side in ("above", "below")}

    assert sides(4, 4.1, 4.2) == {"above": True, "below": False}
    assert sides(1, 1.1, 1.2) == {"above": False, "below": True}
    assert sides(1, 2, 4) == {"above": False, "below": False}


def test_resets_and_pruning_at_random_are_drawn_several_times(evidence, story):
    runs = evidence.on_images(evidence.reference).values()
    drawn = [next(r for r in s.resets if r[:2] == ("h1", "both")).redrawn for s in runs]
    assert {len(own) for own in drawn} == {DRAWS} and len(runs) == 3
    expected = across("", "", [own.mean() for own in drawn], "%")
    found = value(story, "layers", "redrawn:h1")
    assert (found.value, found.low) == pytest.approx((expected.value, expected.low), rel=1e-4)
    assert f"{DRAWS} draws a run" in found.note
    half = [100 * (s.accuracy - s.pruning.random[:, 7].mean()) for s in runs]
    assert value(story, "zeros", "half:random").value == pytest.approx(np.mean(half), abs=0.1)
    assert value(story, "zeros", "square_norm").low is None  # a constant of the data


def test_intervals_over_pairs_are_the_jackknifes():
    random = np.random.default_rng(0)
    effects = random.normal(size=6)
    pairs = {(i, j): effects[i] * effects[j] for i, j in itertools.combinations(range(6), 2)}
    found = over_pairs("", "", pairs)
    without = np.array(
        [np.mean([v for pair, v in pairs.items() if i not in pair]) for i in range(6)]
    )
    error = np.sqrt(5 / 6 * np.sum((without - without.mean()) ** 2))
    expected = scipy.stats.t.interval(0.95, 5, np.mean(list(pairs.values())), error)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9)
    assert over_pairs("", "", {(0, 1): 2.0}).low is None and over_pairs("", "", {}).value is None


def test_the_jackknife_of_means_is_students_interval():
    """A pair that says the mean of its two: then the interval over runs is known."""
    values = np.random.default_rng(1).normal(size=5)
    pairs = {(i, j): (values[i] + values[j]) / 2 for i, j in itertools.combinations(range(5), 2)}
    one, other = over_pairs("", "", pairs), across("", "", values)
    np.testing.assert_allclose([one.value, one.low, one.high], [other.value, other.low, other.high])


def test_words_of_numbers():
    assert [percent(v) for v in (1, 0.99996, 0.974, 0.0219, 0)] == [
        *("100%", "99.996%", "97.4%", "2.19%", "0%")
    ]
    assert with_interval(across("", "", [0.5, 0.7], "%")) == "60% [1 to 100%]"
    assert with_interval(Figure("", "", 3.0, 2.0, 4.0, unit="points")) == "3.0 points [2.0 to 4.0]"
    assert (
        with_interval(Figure("", "", 3.0)) == "3"
        and with_interval(Figure("", "", None)) == "not measured"
    )
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert above(Figure("", "", 1.0, 0.5, 1.5)) is True
    assert above(Figure("", "", 1.0, -0.5, 2.5)) is None
    assert above(Figure("", "", 1.0, 0.5, 1.5), 2) is False
    assert above(Figure("", "", 1.0), 2) is above(Figure("", "", 1.0)) is None
    assert all_of([True, True]) is True and all_of([True, None]) is None
    assert all_of([True, None, False]) is False
    assert across("", "", [0.0, 0.1], least=0).low == 0 and across("", "", [1, 3], least=1).low == 1
    assert with_interval(Figure("", "", 4.4, -0.4, 99.0)) == "4 [0 to 99]"
    assert some_of(["a", "b"], ["a", "b"]) == "all layers" and some_of(["b"], "abcd") == "b"
    assert some_of(["b"], "abcde") == "1 of 5 layers"
    assert across("", "", [0, 4]).low == 0 and across("", "", [0, -4]).low < -4


def test_a_curve_has_an_interval_where_every_place_has_one():
    rows = np.random.default_rng(2).normal(size=(4, 3))
    found = curve("name", [1, 2, 3], rows)
    low, high = scipy.stats.t.interval(0.95, 3, rows.mean(0), scipy.stats.sem(rows))
    np.testing.assert_allclose(found.y, rows.mean(0))
    np.testing.assert_allclose([found.low, found.high], [low, high])
    assert curve("name", [1, 2, 3], rows[:1]).low is None
    assert curve("name", [1, 2, 3], rows[:2]).low is None  # it would hide everything else


def test_a_command_is_the_config_again():
    config = Config(optimizer="adam", shuffle_labels=True, activation="relu", epsilon=1e-5, seed=3)
    line = command("some where", json.loads(json.dumps(dataclasses.asdict(config))), seeds=2)
    configs, settings = command_line.parse(["train", *shlex.split(line)[1:]])
    assert settings.logdir == "some where"
    assert configs == [dataclasses.replace(config, seed=seed) for seed in (0, 1)]


def test_a_command_with_a_grid_leaves_to_its_lines_what_they_say():
    config = Config(optimizer="adam", learning_rate=0.5, batch_size=7, display_step=20, watch=())
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    line = command("logs", stored, grid="cliff", seeds=2)
    configs, _ = command_line.parse(["train", *shlex.split(line)[1:]])
    rates = {one.learning_rate for one in configs}
    assert len(rates) == 9 and {one.seed for one in configs} == {0, 1}
    for one in configs:
        own = {"optimizer": "sgd", "learning_rate": one.learning_rate, "seed": one.seed}
        assert one == dataclasses.replace(config, **own)


def test_a_command_puts_no_run_inside_a_run(tmp_path, monkeypatch):
    (tmp_path / "logs" / "run").mkdir(parents=True)
    (tmp_path / "logs" / "run" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert command("logs/run").endswith(" --logdir=logs")
    assert command("logs/run/").endswith(" --logdir=logs")
    assert command("logs").endswith(" --logdir=logs")
    monkeypatch.chdir(tmp_path / "logs")
    assert command("run").endswith(" --logdir=.")
    monkeypatch.chdir(tmp_path / "logs" / "run")
    assert command(".").endswith(" --logdir=..")


# ------------------------------------------------------------------ real runs


def test_a_story_is_whole(story):
    assert [one.slug for one in story.sections] == SLUGS
    slugs = [picture.slug for one in story.sections for picture in one.pictures]
    assert len(slugs) == len(set(slugs)) > 15
    for one in story.sections:
        keys = [figure.key for figure in one.figures]
        assert len(keys) == len(set(keys)) and one.outcome
        for text in (one.answer, one.evidence, *one.unknown, *(c.outcome for c in one.controls)):
            assert text == "" or text.endswith((".", "!", "?"))
            assert not re.search(r"nan|None|\{|\}|  ", text), text
        assert 0 < len(one.answer.split()) <= 30
        for figure in one.figures:
            assert figure.value is not None and math.isfinite(figure.value), figure
            if figure.low is not None:
                assert figure.low <= figure.value <= figure.high
        for picture in one.pictures:
            assert picture.see.strip().endswith("."), picture
            if isinstance(picture, Chart | Bars):
                for series in picture.series:
                    assert len(series.x) == len(series.y) > 0
                    assert np.isfinite(series.y).all()
            if isinstance(picture, Tiles):
                assert picture.images.shape[1:] == (5, 4)


def test_every_command_can_be_given_and_its_runs_compared(story, evidence):
    """They differ from those that are there in what a gap is about alone."""
    known = [{**group.config, "seed": None} for group in evidence.runs.groups]
    commands = [line for one in story.sections for _, line in one.commands]
    assert len(commands) > 5
    for line in commands:
        words = shlex.split(line)
        configs, settings = command_line.parse(["train", *words[1:]])
        assert words[0] == "bin/train" and settings.logdir == evidence.runs.logdir
        for config in configs:
            new = json.loads(json.dumps(dataclasses.asdict(config))) | {"seed": None}
            differ = [{key for key in new if new[key] != one[key]} for one in known]
            assert any(own in ABOUT for own in differ), line


def test_the_figures_are_those_of_the_results(story, logdir):
    kept = [json.loads(path.read_text()) for path in sorted(logdir.glob("sgd,lr=1,*/result.json"))]
    accuracies = [one["test_accuracy"] for one in kept]
    assert value(story, "layers", "accuracy").value == pytest.approx(np.mean(accuracies))
    assert value(story, "table", "accuracy:sgd 1").value == pytest.approx(np.mean(accuracies))


def test_drift_is_that_of_the_weights_and_the_record(story, logdir):
    found = read_runs(str(logdir))
    runs = found.groups[found.labels.index("sgd 1")].runs
    ratios = []
    for run in runs:
        moved = np.linalg.norm(np.float64(run.final.weights[0]) - run.initial.weights[0])
        ratios.append(moved / np.linalg.norm(run.scalars["h1/weights/update/norm"][1]))
    np.testing.assert_allclose(value(story, "growth", "drift:h1").value, np.mean(ratios), rtol=1e-6)


def test_rows_that_never_moved_are_the_inputs_never_lit(story):
    assert value(story, "zeros", "never_lit").value == value(story, "zeros", "unmoved").value == 2
    assert control(story, "zeros", "never_lit").passed is True


def test_a_permutation_is_no_change_and_is_found_again(story):
    assert control(story, "sameness", "order").passed is True
    assert control(story, "sameness", "found_again").passed is True


def test_what_broke_first_is_what_the_diagnosis_says(story, logdir):
    found = section(story, "broke")
    said = diagnose(RunReader(str(next(logdir.glob("sgd,lr=1000,*")))), repeat=False)
    (table,) = [picture for picture in found.pictures if picture.slug == "broken"]
    (row,) = [row for row in table.rows if row[1] == "sgd 1000"]
    assert row[0] == "1" and row[4] == said.finding.reason
    assert row[2] == f"{said.event.kind}, step {said.event.step}"
    assert found.outcome == "broke" and "sgd 1000" in found.answer


def test_a_run_that_is_left_out_is_diagnosed(logdir, tmp_path):
    copy = shutil.copytree(next(logdir.glob("sgd,lr=1000,*")), tmp_path / "runs" / "died")
    (copy / "result.json").unlink()
    runs = read_runs(str(tmp_path))
    assert not runs.groups and [found.path for found in runs.broken] == [str(copy)]
    assert section(make_story(runs), "broke").outcome == "broke"


@pytest.mark.parametrize("died", range(4))
def test_a_run_that_ended_with_nan_did_not_live(logdir, tmp_path, died):
    def copied(rate, seed, status="completed", loss="clipped_cross_entropy"):
        """A run that lived, as one with another config and end."""
        folder = tmp_path / f"{rate} {loss} {seed}"
        shutil.copytree(next(logdir.glob(f"sgd,lr=1,*seed={seed}")), folder)
        for path in (folder / "config.json", folder / "result.json"):
            found = json.loads(path.read_text()) | (
                {"status": status} if "res" in path.name else {}
            )
            found["config"] |= {"learning_rate": rate, "loss": loss}
            path.write_text(json.dumps(found))

    shutil.copytree(next(logdir.glob("sgd,lr=1000,*")), tmp_path / "collapsed")
    copied(1.0, 0)
    copied(2000.0, 1, "nonfinite")
    for seed in range(3):
        status = "nonfinite" if seed < died else "completed"
        copied(1000.0, seed, status, "softmax_cross_entropy")
    found = broke(Evidence(read_runs(str(tmp_path)), None, [], {}, {}))
    (cliff,) = [picture for picture in found.pictures if picture.slug == "cliff"]
    lives, breaks = cliff.series
    assert (breaks.x, breaks.y) == ([1.0, 1000.0, 2000.0], [0, 1, 1]) and lives.x == [1.0, 1000.0]
    (without,) = [one for one in found.controls if one.key == "without_clip"]
    assert without.passed is (not died)
    assert (
        without.outcome == f"{3 - died} of 3 runs of sgd 1000 loss=softmax_cross_entropy survive."
    )


def test_errors_that_two_seeds_share_are_counted():
    labels = np.zeros(100, int)
    a, b = labels.copy(), labels.copy()
    a[:10], b[5:45] = 1, 2
    both, only_a, only_b = 5, 5, 35
    assert _shared(disagreement(a, b, labels, 3)) == pytest.approx(
        both / math.sqrt((both + only_a) * (both + only_b))
    )
    assert math.isnan(_shared(disagreement(labels, b, labels, 3)))


def test_every_pair_of_seeds_is_shown(story):
    (table,) = [p for p in section(story, "sameness").pictures if p.slug == "pairs"]
    assert [row[0] for row in sorted(table.rows)] == ["0 and 1", "0 and 2", "1 and 2"]


def test_one_run_gives_no_interval(logdir, tmp_path):
    shutil.copytree(next(logdir.glob("sgd,lr=1,*seed=0")), tmp_path / "only")
    found = make_story(read_runs(str(tmp_path)))
    assert section(found, "table").outcome == "alone"
    assert section(found, "sameness").outcome == "no_pair"
    assert section(found, "growth").outcome == "no_phases"
    assert not [f for one in found.sections[1:] for f in one.figures if f.low is not None]
    assert any("--seeds=5" in line for one in found.sections for _, line in one.commands)


def test_without_images_the_weights_still_answer(logdir, tmp_path):
    copy = shutil.copytree(logdir, tmp_path / "runs")
    for path in copy.glob("*/result.json"):
        result = json.loads(path.read_text())
        result["config"]["data"] = str(tmp_path / "gone")
        path.write_text(json.dumps(result))
    found = make_story(read_runs(str(copy)))
    assert [one.slug for one in found.sections] == SLUGS
    assert section(found, "layers").outcome == section(found, "distribution").outcome == "no_images"
    assert value(found, "growth", "drift:h1").value > 0
    assert any("gone" in text for _, text in found.made)


def test_no_run_is_no_crash(tmp_path):
    found = make_story(read_runs(str(tmp_path)))
    assert [one.slug for one in found.sections] == SLUGS
    assert {one.outcome for one in found.sections} == {"no_run"}


@pytest.mark.slow
def test_processes_give_the_same_figures(logdir, story):
    calls = []
    with Workers(2) as workers:
        compute = functools.partial(workers.compute, progress=lambda *call: calls.append(call))
        there = make_story(read_runs(str(logdir), compute), compute)
    assert [one.outcome for one in there.sections] == [one.outcome for one in story.sections]
    for one, other in zip(there.sections, story.sections, strict=True):
        for a, b in zip(one.figures, other.figures, strict=True):
            assert a.key == b.key and a.value == pytest.approx(b.value, rel=1e-4, abs=1e-6)
    assert calls[0] == (0, 5) and (5, 5) in calls  # the runs
    assert (0, 8) in calls and calls[-1] == (8, 8)  # the runs, and the pairs of three


# ------------------------------------------------------------------ synthetic runs


def walk(kind, seed, steps=400):
    """A run whose weights went off straight, or as a random walk, with the record of it."""
    random = np.random.default_rng(seed)
    shapes = {"h1": (12, 6), "h2": (6, 5), "logits": (5, 3)}
    start = {f"{n}/weights": random.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}
    start |= {f"{n}/bias": np.zeros(s[1], np.float32) for n, s in shapes.items()}
    end, scalars = dict(start), {}
    times, between = np.arange(1, steps + 1), {}
    for name, shape in shapes.items():
        moves = random.normal(0, 0.01, (steps, *shape))
        if kind == "straight":
            moves[:] = moves[0]
        path = np.cumsum(moves, axis=0)
        tag = f"{name}/weights"
        for step in times[:-1]:
            between.setdefault(step, dict(start))[tag] = start[tag] + path[step - 1]
        end[tag] = (start[tag] + path[-1]).astype(np.float32)
        scalars[f"{tag}/update/norm"] = times, np.linalg.norm(moves, axis=(1, 2))
        scalars[f"{tag}/distance"] = times, np.linalg.norm(path, axis=(1, 2))
        scalars[f"{tag}/norm"] = times, np.linalg.norm(start[tag] + path, axis=(1, 2))
    scalars["accuracy"] = times, np.full(steps, 0.5)
    scalars["loss"] = times, np.exp(-times / 50)
    config = json.loads(json.dumps(dataclasses.asdict(Config(seed=seed, training_steps=steps))))
    networks = {
        step: Weights.from_tensors(w) for step, w in ((0, start), *between.items(), (steps, end))
    }
    result = {"status": "completed", "step": steps, "data": "none", "test_accuracy": 0.5}
    return Run(f"{kind}-{seed}", config, result, networks, scalars)


@pytest.mark.parametrize(
    ("kind", "outcome", "ratio", "power"),
    [("straight", "drift", 20, 1), ("walk", "walk", 1, 0.5)],
)
def test_a_walk_is_told_from_a_straight_line(kind, outcome, ratio, power):
    runs = [walk(kind, seed) for seed in range(5)]
    evidence = evidence_of(runs)
    assert isinstance(evidence, Evidence) and evidence.reference.runs is runs
    found = growth(evidence)
    figures = {figure.key: figure for figure in found.figures}
    assert found.outcome == outcome
    for name in ("h1", "h2", "logits"):
        assert figures[f"drift:{name}"].value == pytest.approx(ratio, rel=0.25)
        fall = ratio * math.sqrt(80 / 400) if kind == "straight" else 1
        for phase in ("fall", "after"):
            assert figures[f"{phase}:{name}"].value == pytest.approx(fall, rel=0.25)
        assert figures[f"power:{name}"].value == pytest.approx(power, abs=0.15)


@pytest.mark.parametrize(
    ("later", "outcome"),
    [([0.7, 0.71, 0.72], "drift_then_back"), ([0.7, 0.9, 1.2], "drift_then_unclear"),
     ([1.4, 1.5, 1.6], "drift")],
)  # fmt: skip
def test_after_the_fall_weights_turn_back_where_the_whole_interval_is_below_1(
    monkeypatch, later, outcome
):
    def ratio(run, name, phase):
        return {"fall": 1.5, "after": later[run.seed]}.get(phase, math.nan) + 0.001 * run.seed

    monkeypatch.setattr("lab.report.questions.q5_growth._ratio", ratio)
    assert growth(evidence_of([walk("walk", seed) for seed in range(3)])).outcome == outcome


def test_distances_whose_intervals_overlap_do_not_say_that_labels_matter(evidence):
    def passed(*kinds):
        runs = [[walk(kind, seed, steps=40) for seed in range(3)] for kind in kinds]
        configs = [runs[0][0].config | {"shuffle_labels": shuffled} for shuffled in (False, True)]
        groups = [Group(kind, config, "none", own)
                  for kind, config, own in zip(kinds, configs, runs, strict=True)]  # fmt: skip
        found = draft.Draft("growth", evidence._replace(runs=dataclasses.replace(
            evidence.runs, groups=groups)))  # fmt: skip
        _shuffled(found, groups[0])
        return found.controls[0].passed

    assert passed("walk", "straight") is True and passed("walk", "walk") is None


def test_a_ratio_over_the_whole_run_decides_nothing_of_a_decayed_rate(evidence):
    runs = [walk("straight", seed, steps=40) for seed in range(3)]
    config = runs[0].config | {"learning_rate_decay": "cosine"}
    groups = [Group("fixed", runs[0].config, "none", runs), Group("decayed", config, "none", runs)]
    beside = evidence._replace(runs=dataclasses.replace(evidence.runs, groups=groups))
    _decayed(found := draft.Draft("growth", beside), groups[0])
    assert found.controls[0].passed is None and "jolt included" in found.controls[0].outcome


def evidence_of(runs, **more):
    """Of one group, whose images are not available."""
    group = Group("sgd 0.01", runs[0].config, "none", runs)
    return measure(Runs("logs", [group], results.make_table([]), [], {}, [], **more))


def test_a_run_broke_if_its_loss_says_so():
    runs = [walk("walk", seed) for seed in range(5)]
    stuck = runs[0].scalars | {"loss": (np.arange(1, 401), np.r_[2.4, np.full(399, 2.32)])}
    runs[0] = dataclasses.replace(runs[0], scalars=stuck)

    def ask(some, *kinds):
        """kinds: of the event of each run, and whether the loss shows it."""
        finding = Finding("rate", 1, ("h1/weights",), reason="of the rate")
        broken = [Diagnosis(run.path, Event(kind, 2, (), seen), finding, (), 400, "", None, "")
                  for run, (kind, seen) in zip(some, kinds, strict=True)]  # fmt: skip
        found = broke(evidence_of(some, broken=broken))
        rows = [row[0] for p in found.pictures if p.slug == "broken" for row in p.rows]
        return found, rows, next(c.passed for c in found.controls if c.key == "quiet")

    shown, hidden = ("divergence", True), ("departure", False)
    found, rows, quiet = ask(runs, shown, shown, shown, hidden, hidden)
    assert rows == ["1"] and "1 of 5 runs broke" in found.evidence and "2 others" in found.evidence
    assert quiet is False  # two of five, where one in twenty may have such an event
    (links,) = [p for p in found.pictures if p.slug == "links"]
    assert links.title.endswith("in sgd 0.01")
    found, rows, quiet = ask(runs[3:], hidden, ("spike", True))
    assert found.outcome == "none" and rows == [] and found.evidence.startswith("1 run had")
    assert quiet is True and ask(runs[1:], *[hidden] * 4)[2] is False
    alone = ask(runs[1:2], hidden)[0]
    assert alone.answer == "Nothing: the run did not break." and alone.evidence == ""


def test_runs_that_collapsed_beside_others_of_their_row_are_counted():
    done = {"status": "completed", "step": 1, "test_total": 1000}
    made = [done | {"config": {"seed": seed, "learning_rate": rate}, "test_correct": right}
            for rate, both in ((0.2, (900, 500)), (0.3, (300, 950)))
            for seed, right in enumerate(both)]  # fmt: skip
    compared = results.make_table(parse_result(json.dumps(one), "run") for one in made)
    ends = [{"status": status} for status in ("completed", "collapsed", "collapsed")]
    runs = [walk("walk", seed) for seed in range(3)]
    runs = [dataclasses.replace(run, result=run.result | end)
            for run, end in zip(runs, ends, strict=True)]  # fmt: skip
    group = Group("sgd 0.01", runs[0].config, "none", runs)
    all_runs = Runs("logs", [group], compared, [], {}, ["sgd 0.2", "sgd 0.3"])
    found = table(Evidence(all_runs, None, [], {}, {}))
    assert "2 runs collapsed" in found.evidence
    assert compared.pairs[0].detectable > 1 and "detect no difference" in found.evidence


@pytest.mark.parametrize(
    ("start", "end", "outcome"),
    [(0.01, 0.01, "stay"), (0.01, 0.5, "left"), (0.5, 0.01, "came"), (0.5, 0.5, "not_near")],
)
def test_weights_start_near_0_or_not_and_end_there_or_not(start, end, outcome):
    runs = []
    for seed in range(2):
        run, fill = walk("walk", seed, steps=40), np.random.default_rng(seed).choice
        ends = {step: Weights({tag: np.float32(fill([-size, size], w.shape))
                               for tag, w in run.initial.items()})
                for step, size in ((0, start), (40, end))}  # fmt: skip
        for name in ("h2", "logits"):  # these are far from 0 at the end, also where most are near
            ends[40][f"{name}/weights"] += 1
        runs.append(dataclasses.replace(run, networks=ends))
    found = zeros(evidence_of(runs))
    assert found.outcome == outcome
    if outcome == "stay":
        assert "hidden layer 2" in found.answer and "the output layer" in found.answer


def test_phases_end_where_their_rule_says():
    norms, losses = np.ones(300), np.r_[np.linspace(4, 1, 150), np.full(150, 1.0)]
    norms[:3], norms[60] = 30, 30  # the later one is no jolt
    assert phases(norms, losses) == (3, 120)  # the first part of ten steps that is 1.75 or lower
    assert phases(np.ones(300), np.full(300, 2.0)) == (0, 300)
    assert spans(Phases(3, 103), 300) == {
        "jolt": [(0, 3)], "fall": [(3, 103)], "after": [(103, 203)]
    }  # fmt: skip


def test_templates_have_the_blocks_that_are_asked_for_and_no_others():
    folder = pathlib.Path(draft.__file__).parent
    templates = {path.stem: path.read_text() for path in (folder / "templates/questions").iterdir()}
    blocks = {slug: set(re.findall(r"{% block (\w+)", text)) for slug, text in templates.items()}
    kinds = {"chart": "picture", "bars": "picture", "tiles": "picture", "table": "picture"}
    kinds |= {"control": "control", "unknown": "unknown", "command": "gap"}
    asked_of_common, checked = set(), set()
    for path in sorted((folder / "questions").glob("*.py")):
        code = path.read_text()
        calls = re.findall(r'draft\.(\w+)\(\s*f?"([\w-]+)', code)
        asked = {
            f"{kinds[method]}_{key}".replace("-", "_") for method, key in calls if method in kinds
        }
        asked_of_common |= asked
        if slug := re.search(r'Draft\("(\w+)"|@about_reference\ndef (\w+)', code):
            own = blocks[slug[1] or slug[2]]
            assert asked <= own | blocks["common"], path
            texts = {block for block in own if block.partition("_")[0] in kinds.values()}
            assert texts <= asked, path
            checked.add(slug[1] or slug[2])
    texts = {block for block in blocks["common"] if block.partition("_")[0] in kinds.values()}
    assert texts <= asked_of_common
    assert checked == templates.keys() - {"common"} == {*SLUGS}
