"""The table and its statistics: against scipy, hand-worked cases and brute force."""

import csv
import dataclasses
import io
import itertools
import json
import random
import statistics
import types

import numpy as np
import pytest
from scipy import stats

from lab.compare import formats, results
from lab.compare import statistics as st
from lab.compare import table as r
from lab.errors import LabError
from lab.report.questions import readme_table
from lab.report.section import Table
from lab.settings import source
from lab.settings.config import Config
from lab.training import user_code

RECIPE = {
    "n_hidden_1": 128,
    "n_hidden_2": 256,
    "learning_rate": 0.01,
    "optimizer": "sgd",
    "activation": "sigmoid",
    "epsilon": 1e-7,
    "training_steps": 3000,
    "batch_size": 256,
    "seed": 0,
    "watch": ("weights", "gradients"),
}


def record(seed=0, correct=9700, status="completed", collapsed=None, **config):
    """What a run leaves in result.json, a key that nobody knows included."""
    finished = status in ("completed", "collapsed")
    return {
        "config": {**RECIPE, "seed": seed, **config},
        "status": status,
        "step": 3000 if finished else 1200,
        "test_correct": correct if finished else None,
        "test_total": 10000 if finished else None,
        "test_accuracy": correct / 10000 if finished else None,
        "readme_accuracy": correct / 10000 + 0.0001 if finished else None,
        "collapsed": collapsed,
        "seconds": 4.0 + seed if finished else None,
        "evaluations": {"test_accuracy": [0.5, 0.1] + [0.96, 0.97] * 5 if finished else []},
        "a key of tomorrow": 1,
    }


def table(*records, **how):
    read = [
        results.parse_result(json.dumps(x), f"run{i:03}/result.json") for i, x in enumerate(records)
    ]
    return r.make_table(read, **how)


def row_of_seeds(counts, **config):
    return [record(seed, correct, **config) for seed, correct in enumerate(counts)]


def readme_grid(seeds=5):
    """The README's nine rows, each a fraction of a percent about its figure; row 0 collapsed."""
    draw, records = random.Random(1), []
    for n1, n2, rate, optimizer, figure in r.README_ROWS:
        for seed in range(seeds):
            died = {"correct": 980, "status": "collapsed", "collapsed": 0} if rate == 0.1 else {}
            count = {"correct": round(10000 * figure + draw.gauss(0, 15))}
            config = dict(zip(r.README_FIELDS, (n1, n2, rate, optimizer), strict=True))
            records.append(record(seed, **config, **{**count, **died}))
    return records


# ------------------------------------------------------------------ statistics


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired_test_and_interval_are_scipys(n):
    draw = np.random.default_rng(n)
    a, b = draw.normal(0.97, 0.002, n), draw.normal(0.969, 0.001, n)
    oracle = stats.ttest_rel(a, b)
    assert st.paired_p(list(a - b)) == pytest.approx(oracle.pvalue, 1e-9)
    assert st.t_interval(list(a - b)) == pytest.approx(tuple(oracle.confidence_interval()), 1e-9)


@pytest.mark.parametrize("differences, p", [([0, 0, 0], 1), ([0.1, 0.1], 0), ([-2, -2, -2], 0)])
def test_paired_test_without_spread(differences, p):
    assert st.paired_p(differences) == p


@pytest.mark.parametrize("correct, total", [(9712, 10000), (0, 50), (50, 50), (1, 7), (980, 10000)])
def test_wilson_interval_solves_its_equation(correct, total):
    """Its ends are the p with (correct/total - p)^2 = z^2 p (1 - p) / total (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share = correct / total
    ends = np.roots([1 + z * z / total, -2 * share - z * z / total, share**2])
    assert st.wilson_interval(correct, total) == pytest.approx(sorted(ends.real), abs=1e-9)


@pytest.mark.parametrize(
    "p_values, adjusted",
    [
        ([], []),
        ([0.03], [0.03]),
        # Sorted 0.005, 0.01, 0.03, 0.04: 4*0.005, 3*0.01, 2*0.03, then max(0.06, 1*0.04).
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5, 0.0], [1.0, 1.0, 0.0]),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert st.holm(p_values) == pytest.approx(adjusted)


@pytest.mark.parametrize("n", range(9))
def test_letters_say_exactly_which_pairs_differ(n):
    pairs = list(itertools.combinations(range(n), 2))
    for trial in range(60):
        draw = random.Random(100 * n + trial)
        different = [pair for pair in pairs if draw.random() < trial / 59]
        draw.shuffle(different)
        shown = [set(letters) for letters in st.letter_display(n, different)]
        assert all(shown)
        for i, j in pairs:
            assert bool(shown[i] & shown[j]) == ((i, j) not in different), (different, shown)
        columns = [{i for i in range(n) if x in shown[i]} for x in set().union(*shown)]
        assert not any(a < b or (a == b and a is not b) for a in columns for b in columns)


@pytest.mark.parametrize(
    "n, different, letters",
    [
        (3, [], ["a", "a", "a"]),
        (3, [(0, 2)], ["a", "ab", "b"]),
        (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        # The example of two overlapping groups and one apart.
        (4, [(0, 2), (0, 3), (1, 3), (2, 3)], ["a", "ab", "b", "c"]),
    ],
)
def test_letters_by_hand(n, different, letters):
    assert st.letter_display(n, different) == letters


def test_letters_beyond_the_alphabet_stay_apart():
    letters = st.letter_display(55, list(itertools.combinations(range(55), 2)))
    assert letters[0] == "a" and letters[51:54] == ["Z", "(53)", "(54)"] and len(set(letters)) == 55


# ------------------------------------------------------------------------ rows


def test_a_row_is_the_trials_that_differ_only_in_the_seed():
    shown = table(*row_of_seeds([9700, 9720, 9710]), *row_of_seeds([9600], activation="relu"))
    assert shown.fields == [*r.README_FIELDS, "activation"]
    first, second = shown.rows
    values = [0.97, 0.972, 0.971]
    assert first.mean == pytest.approx(0.971)
    assert first.std == pytest.approx(statistics.stdev(values))
    logits = np.log(0.971 / 0.029) + np.array([-1, 1]) * (
        stats.t.ppf(0.975, 2) * stats.sem(values) / (0.971 * 0.029)
    )
    assert (first.low, first.high) == pytest.approx(tuple(1 / (1 + np.exp(-logits))))
    assert (first.interval, first.seeds, first.correct) == ("t", [0, 1, 2], [9700, 9720, 9710])
    assert (first.total, first.seconds, first.status) == (10000, 5.0, "completed")
    assert first.spread == pytest.approx(statistics.stdev([0.96, 0.97] * 5))
    assert (first.readme, second.readme) == (0.9752, None)
    assert first.readme_accuracy == pytest.approx(0.9711)
    assert second.interval == "wilson" and second.std is None
    assert (second.low, second.high) == pytest.approx(st.wilson_interval(9600, 10000))


@pytest.mark.parametrize(
    "config, readme",
    [
        ({}, 0.9752),
        ({"optimizer": "adam"}, 0.9764),
        ({"optimizer": "rmsprop", "n_hidden_2": 64}, 0.9762),
        ({"learning_rate": 0.02}, None),
        ({"training_steps": 300}, None),
        ({"epsilon": 1e-8}, None),
        ({"a field of tomorrow": True}, None),
        ({"watch": []}, 0.9752),  # recorded otherwise, trained the same
    ],
)
def test_only_the_recipe_gets_a_figure_of_the_readme(config, readme):
    assert table(record(**config)).rows[0].readme == readme


def test_the_recipe_is_the_configs_defaults():
    recipe = dataclasses.asdict(Config())
    assert {*r.README_FIELDS, *r.RECORDING_FIELDS} <= recipe.keys()
    for *values, figure in r.README_ROWS:
        config = Config(**dict(zip(r.README_FIELDS, values, strict=True)), seed=7, watch=())
        written = json.dumps({**record(), "config": dataclasses.asdict(config)})
        assert r.make_table([results.parse_result(written, "x")]).rows[0].readme == figure


@pytest.mark.parametrize(
    "counts, agrees",
    [
        ([9752, 9752], True),
        ([9720, 9721], True),  # 0.0031 off: within the tolerance
        ([9700, 9701], False),
        ([9680, 9730], True),  # 0.0046 off, but 3 standard deviations are 0.0106
        ([9600, 9640], False),
        ([9752], None),
    ],
)
def test_agreement_with_the_readme(counts, agrees):
    assert table(*row_of_seeds(counts)).rows[0].readme_agrees is agrees


def test_rows_stand_in_the_readmes_order_or_the_grids():
    records = readme_grid(1) + [record(learning_rate=x) for x in (0.5, 0.05)]
    random.Random(3).shuffle(records)
    rows = table(*records).rows
    assert [row.readme for row in rows] == [row[-1] for row in r.README_ROWS] + [None, None]
    assert [row.config["learning_rate"] for row in rows[-2:]] == [0.05, 0.5]
    grid = [{**RECIPE, "learning_rate": x, "seed": s} for s in (0, 1) for x in (0.5, 0.0001)]
    rows = table(*records, order=grid).rows
    assert [row.config["learning_rate"] for row in rows[:3]] == [0.5, 0.0001, 0.1]


def test_a_field_that_an_older_result_lacks_is_the_recipes():
    old = record(1, 9710)
    del old["config"]["activation"]
    assert [row.runs for row in table(record(0), old).rows] == [2]


def test_a_run_of_another_model_may_lack_the_perceptrons_fields():
    """Its result.json lists them where an older version wrote it."""
    old, new = record(0, model="convnet"), record(1, 9710, model="convnet")
    for one in dataclasses.fields(Config):
        if one.metadata.get("of") == "mlp":
            new["config"].pop(one.name, None)
    assert "n_hidden_1" in old["config"] and "n_hidden_1" not in new["config"]
    assert [row.runs for row in table(old, new).rows] == [2]


def test_a_trial_counts_once_and_the_complete_copy_counts():
    shown = table(record(0, status="interrupted"), record(0, 9700), record(0, 9700))
    assert [(row.runs, row.correct) for row in shown.rows] == [(1, [9700])]
    assert sum("repeats run001/result.json" in note for note in shown.notes) == 2


# ------------------------------------------------------------- runs that ended badly


DEAD = {"status": "collapsed", "correct": 980, "collapsed": 0}
DEAD_3 = {"status": "collapsed", "correct": 1010, "collapsed": 3}
LOST = {"status": "interrupted"}


@pytest.mark.parametrize(
    "ends, status, averaged, kind, mean",
    [
        ([{}, {}], "completed", 2, "completed", 0.97),
        ([{}, DEAD, {}, DEAD_3], "2 of 4 collapsed (classes 0, 3)", 2, "completed", 0.97),
        ([DEAD, DEAD], "2 of 2 collapsed (class 0)", 2, "collapsed", 0.098),
        ([DEAD, DEAD_3], "2 of 2 collapsed (classes 0, 3)", 2, "collapsed", 0.0995),
        ([DEAD], "collapsed (class 0)", 1, "collapsed", 0.098),
        ([LOST, {}], "1 of 2 interrupted", 1, "completed", 0.97),
        ([LOST, DEAD], "1 of 2 interrupted; 1 of 2 collapsed (class 0)", 1, "collapsed", 0.098),
        ([{"status": "nonfinite"}], "nonfinite", 0, None, None),
    ],
)
def test_statuses_are_never_averaged_together(ends, status, averaged, kind, mean):
    shown = table(*(record(seed, **end) for seed, end in enumerate(ends)))
    row = shown.rows[0]
    assert (row.status, row.averaged, row.averaged_status) == (status, averaged, kind)
    assert row.runs == len(ends)
    assert row.mean == (None if mean is None else pytest.approx(mean))
    assert (row.interval is None) == (kind != "completed")
    left_out = status != "completed"
    assert any(note.startswith("runs: only completed runs") for note in shown.notes) == left_out
    if kind == "collapsed":
        assert "collapsed" in formats.to_text(shown).splitlines()[1]


def section(*records):
    """The report's section of the table of some runs, a row each config."""
    found = table(*records)
    labels = [f"{row.config['optimizer']} {row.config['learning_rate']:g}" for row in found.rows]
    runs = types.SimpleNamespace(table=found, labels=labels, groups=[])
    return readme_table.table(types.SimpleNamespace(runs=runs, reference=None))


def test_the_reports_answer_names_the_best_of_the_rows_that_were_compared():
    """A row of one seed may have done better: that is said as well."""
    rates = {0.005: 9700, 0.003: 9200}
    sure = [record(seed, correct + seed, learning_rate=rate)
            for rate, correct in rates.items() for seed in range(6)]  # fmt: skip
    found = section(*sure)
    assert found.outcome == "best" and "of 2 configurations that completed" in found.answer
    assert "97.03%" in found.answer and "fewer than two seeds" not in found.evidence
    found = section(*sure, record(correct=9800, optimizer="adam", learning_rate=0.02))
    assert found.outcome == "best" and "of 2 configurations that were compared" in found.answer
    assert "adam 0.02 has 98%" in found.evidence
    pairs = {0.005: (9700, 9100), 0.003: (9150, 9300)}
    random = [record(seed, correct, learning_rate=rate)
              for rate, both in pairs.items() for seed, correct in enumerate(both)]  # fmt: skip
    assert section(*random).outcome == "unsure"


def test_the_reports_answer_is_about_rows_that_were_compared_with_each_other():
    """One row of the README beside others is compared with them, and stands in their table."""
    rates = {0.01: [9740, 9708, 9771], 0.0003: [8920, 8950, 8929], 0.00003: [2902, 3143, 4233]}
    grid = [
        one for rate, counts in rates.items() for one in row_of_seeds(counts, learning_rate=rate)
    ]
    found = section(*grid)
    assert found.outcome == "best" and "sgd 0.01 is the best of 3 configurations" in found.answer
    tables = [picture for picture in found.pictures if isinstance(picture, Table)]
    assert [len(one.rows) for one in tables] == [3]
    adam = row_of_seeds([9640, 9645, 9652], optimizer="adam")
    found = section(*grid, *adam)
    assert "the README's 2 configurations that completed" in found.answer
    found = section(*grid[:6], *adam)
    assert "the README's 2 configurations that completed" in found.answer
    assert "fewer than two seeds" not in found.evidence


def test_collapsed_runs_are_not_compared():
    shown = table(
        *(record(seed, learning_rate=0.1, **DEAD) for seed in range(3)),
        *row_of_seeds([9700, 9710, 9720]),
        *row_of_seeds([9500, 9511, 9522], optimizer="adagrad"),
        # Seeds 0 and 1 died: one seed is left to compare, which is none.
        *(record(seed, optimizer="adam", **DEAD) for seed in range(2)),
        record(2, 9700, optimizer="adam"),
    )
    assert [row.groups for row in shown.rows] == ["", "a", "", "b"]
    assert [(pair.a, pair.b, pair.n) for pair in shown.pairs] == [(1, 3, 3)]
    assert any(note.startswith("No letter for rows 0, 2:") for note in shown.notes)


# ---------------------------------------------------------------------- groups


def test_comparisons_are_seed_paired():
    """Seeds that shift both rows alike must not hide a small difference between them."""
    shift = [0, 60, -60, 30, -45]
    shown = table(
        *row_of_seeds([9700 + s for s in shift]),
        *row_of_seeds([9690 + s + i for i, s in enumerate(shift)], optimizer="adam"),
    )
    (pair,) = shown.pairs
    a, b = (np.array(row.correct) / 10000 for row in shown.rows)
    assert pair.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert stats.ttest_ind(a, b).pvalue > 0.5 > r.LEVEL > pair.p
    assert pair.difference == pytest.approx(0.0008) and 0 < pair.low < 0.0008 < pair.high
    assert sorted(row.groups for row in shown.rows) == ["a", "b"]


@pytest.mark.parametrize(("n", "level"), [(5, 0.05), (10, 0.005), (3, 0.05)])
def test_what_a_test_can_see_is_scipys_noncentral_t(n, level):
    far = st.detectable(n, level) * n**0.5
    limit = stats.t.ppf(1 - level / 2, n - 1)
    power = stats.nct.sf(limit, n - 1, far) + stats.nct.cdf(-limit, n - 1, far)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_few_seeds_are_no_group():
    noisy = [row_of_seeds(c, batch_size=k) for k, c in ((1, [9700, 3250]), (2, [9780, 9000]))]
    shown = table(*itertools.chain(*noisy))
    assert [row.groups for row in shown.rows] == ["b?", "a?"] and shown.pairs[0].differ is None
    assert any(note.startswith("?: too few seeds") for note in shown.notes)


def test_the_readmes_rows_are_compared_among_themselves():
    alone = table(*readme_grid())
    more = [row_of_seeds([9700, 9710, 9705], batch_size=k) for k in range(2, 8)]
    beside = table(*readme_grid(), *itertools.chain(*more))
    assert [row.groups for row in beside.rows[:9]] == [row.groups for row in alone.rows]


def test_only_rows_that_were_compared_share_a_letter():
    """Whichever rows the README has, and in which order they stand."""
    far = {0.01: [9740, 9745, 9751], 0.02: [5000, 5010, 5005], 0.05: [3000, 3010, 3007]}
    grid = [row_of_seeds(counts, learning_rate=rate) for rate, counts in far.items()]
    adam = row_of_seeds([9640, 9645, 9652], optimizer="adam")

    def by_rate(shown):
        return {row.config["learning_rate"]: row.groups for row in shown.rows}

    assert by_rate(table(*itertools.chain(*grid))) == {0.01: "a", 0.02: "b", 0.05: "c"}
    assert by_rate(table(*itertools.chain(*grid[:2]))) == {0.01: "a", 0.02: "b"}
    shown = table(*itertools.chain(*grid), *adam)  # the README's rows are the first two
    assert [row.groups for row in shown.rows] == ["a", "b", "c", "d"]
    assert [(pair.a, pair.b) for pair in shown.pairs] == [(0, 1), (2, 3)]
    assert not any("fewer than two seeds" in note for note in shown.notes)
    assert any("of different kinds are not compared" in note for note in shown.notes)
    (alone,) = (row for row in table(*grid[0], *grid[1], *adam).rows if row.readme is None)
    assert alone.groups == ""


def test_pairs_are_corrected_together():
    rows = [row_of_seeds([9700 + 40 * k, 9703 + 41 * k, 9701 + 43 * k], batch_size=k)
            for k in range(1, 5)]  # fmt: skip
    shown = table(*itertools.chain(*rows))
    assert len(shown.pairs) == 6
    assert [pair.p_holm for pair in shown.pairs] == st.holm([pair.p for pair in shown.pairs])


def test_the_same_configuration_under_other_names_is_one_group():
    counts = [9700, 9720, 9710]
    shown = table(*row_of_seeds(counts), *row_of_seeds(counts, watch=[]))
    assert [row.groups for row in shown.rows] == ["a", "a"]
    assert shown.pairs[0].p == 1


@pytest.mark.slow
def test_rows_of_one_distribution_are_rarely_told_apart():
    """Nine rows of equal law, five seeds: some split must appear in at most 5% of such grids."""
    draw, grids, split = np.random.default_rng(0), 100, 0
    for _ in range(grids):
        accuracies = [dict(enumerate(row)) for row in draw.normal(0.976, 0.0015, (9, 5))]
        split += any(pair.p_holm <= r.LEVEL for pair in r.compare(accuracies, [""] * 9))
    assert split <= 10  # P(Binomial(100, 0.05) > 10) < 0.02, and the seed is fixed


def test_clearly_different_rows_get_different_letters():
    shown = table(*readme_grid())
    groups = [row.groups for row in shown.rows]
    assert groups[0] == ""
    slow, adagrad, middling = groups[3], groups[6], groups[2]
    for row, letters in enumerate(groups[1:], 1):
        for other, those in ((3, slow), (6, adagrad), (2, middling)):
            assert row == other or not set(letters) & set(those), (row, other, groups)
    assert "a" in max(zip([row.mean for row in shown.rows], groups, strict=True))[1]
    assert len({*groups[5:6], *groups[7:8]}) == 1  # rmsprop 256 and 128: not to be told apart


@pytest.mark.parametrize(
    "records, note",
    [
        ([record(0), record(0, optimizer="adam")], "One seed per row allows no comparison"),
        ([*row_of_seeds([9700, 9710])], "one row, so nothing to compare"),
        (
            [record(s, optimizer=o) for o, s in [("sgd", 0), ("sgd", 1), ("adam", 2), ("adam", 3)]],
            "No two rows have two completed seeds in common",
        ),
    ],
)
def test_no_comparison_is_said_plainly(records, note):
    shown = table(*records)
    assert not shown.pairs and any(note in line for line in shown.notes)
    assert [row.groups for row in shown.rows] == (["a"] if len(shown.rows) == 1 else ["", ""])


def test_a_pair_without_common_seeds_is_said_too():
    seeds = {"adam": (0, 1), "rmsprop": (0, 1, 2, 3), "sgd": (2, 3)}
    shown = table(*(record(s, 9700 + s, optimizer=o) for o in seeds for s in seeds[o]))
    assert len(shown.pairs) == 2
    assert any(note.startswith("1 pair of rows with letters had fewer") for note in shown.notes)


# --------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "not JSON"),
        ("[]", "needs a 'config' and a 'status'"),
        ('{"config": {}, "status": "interrupted", "step": 3}', "config.seed is missing"),
        (json.dumps({**record(), "step": 0.5}), "result.json: step is 0.5: must be an integer"),
        (
            json.dumps({**record(status="collapsed"), "test_correct": None}),
            "test_total is None of 10000",
        ),
        (
            json.dumps({**record(), "test_correct": 10001}),
            "test_correct is 10001: must be at most test_total, 10000",
        ),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_file_is_named_and_hides_nothing(tmp_path, content, complaint):
    for name, what in [("a", content), ("b/c", json.dumps(record(3)))]:
        (tmp_path / name).mkdir(parents=True)
        file = tmp_path / name / "result.json"
        file.write_bytes(what if isinstance(what, bytes) else what.encode())
    found, problems = results.read_results(tmp_path)
    assert [result.seed for result in found] == [3]
    (problem,) = problems
    assert str(tmp_path / "a" / "result.json") in problem and complaint in problem
    shown = r.make_table(found, problems=problems)
    assert any(problem in note for note in shown.notes)


def test_runs_of_an_earlier_version_are_read():
    """Their config had `data_dir`, "" for MNIST, where `data` is now; and no model."""

    def rows(*records):
        return r.make_table([results.parse_result(json.dumps(one), "it") for one in records]).rows

    old = [record(seed, data_dir="") for seed in (0, 1)]
    (row,) = rows(*old, record(2, data="mnist", model="mlp", model_arguments=[], xla="auto"))
    assert row.runs == 3 and row.config["data"] == "mnist" and "data_dir" not in row.config
    found = rows(*old, record(0, data_dir="/a/set"), record(1, data="/a/set"))
    assert [(row.config["data"], row.runs) for row in found] == [("mnist", 2), ("/a/set", 2)]
    with pytest.raises(LabError, match=r"config\.data is \[\]: must be a string"):
        rows(record(data_dir=[]))


def test_a_parameter_of_a_model_has_its_default_where_none_was_given(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def make(width=8, depth=2): ...")
    files = user_code.load(source.read("model", f"{path}:make")).digest

    def of(*arguments, seed=0):
        told = {"network": "a" * 64, "model_files": files}
        return record(seed, model=f"{path}:make", model_arguments=arguments) | told

    runs = [of("width=16"), of(), of("width=2", seed=1), of("width=16", seed=1)]
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(table(*runs)))))
    assert [row["model.width"] for row in rows] == ["2", "8", "16"]
    assert "model.depth" not in rows[0] and "model_arguments" not in rows[0]
    path.write_text("def make(width=9, depth=2): ...")  # not what the runs had
    found = table(*runs)
    assert {row.parameters["width"] for row in found.rows} == {"2", "16", "default"}
    assert {row.parameters["width"] for row in table(*runs[2:]).rows} == {"2", "16"}


def test_networks_and_data_of_one_config_are_rows_of_their_own():
    """Objects that a run was given, and files, are told apart by digests; seeds are not."""

    def of(digest, seed, **told):
        return record(seed, model="nets.py:Net") | {"network": digest * 64} | told

    given = [of(d, seed, given=["data", "model"]) for d in "ab" for seed in (0, 1)]
    files = [of("c", seed, model_files=digest) for digest in ("x", "y") for seed in (2, 3)]
    data = [of("a", seed, given=["model"], data="d" * 64) for seed in (0, 1)]
    shown = table(*given, *files, *data)
    assert sorted(row.seeds for row in shown.rows) == [[0, 1]] * 3 + [[2, 3]] * 2
    assert len({(row.network, row.data) for row in shown.rows}) == 5
    for show in (formats.to_text, formats.to_markdown):
        assert "network" in show(shown) and "network" not in show(table(*given[:2]))
    # What a config says in full, a digest of the trace does not split: seeds may be part of it.
    assert [row.runs for row in table(record(0) | {"network": "a"}, record(1)).rows] == [2]
    # Accuracies on different data are not compared, and share no letter.
    (other,) = [i for i, row in enumerate(shown.rows) if row.data]
    assert all(other not in (pair.a, pair.b) for pair in shown.pairs)


def test_a_row_has_the_runs_own_metric():
    def of(seed, **figures):
        none = dict.fromkeys(("test_correct", "test_accuracy", "readme_accuracy"))
        return record(seed, loss=f"{len(figures)}.py:f") | none | figures

    errors = [0.5, 0.75, 0.25]
    mae = [of(s, test_metrics={"mae": e}, test_loss=2 * e,
              evaluations={"test_mae": [1, e], "test_loss": [9, 9]})
           for s, e in enumerate(errors)]  # fmt: skip
    loss = [of(0, test_loss=0.125)]
    nothing = [of(s, test_total=None, test_loss=None) | {"evaluations": {}} for s in (0, 1)]
    shown = table(*mae, *loss, *nothing, record(0))
    rows = {row.metric: row for row in shown.rows}
    found = rows["mae"]
    assert (found.mean, found.loss, found.interval) == (0.5, 1.0, "t")
    expected = stats.t.interval(0.95, 2, 0.5, stats.sem(errors))
    np.testing.assert_allclose([found.low, found.high], expected)
    assert found.spread == pytest.approx(np.median([np.std([1, e], ddof=1) for e in errors]))
    assert (rows["loss"].mean, rows["loss"].low, rows["loss"].correct) == (0.125, None, [])
    assert (rows[""].mean, rows[""].loss, rows[""].runs) == (None, None, 2)
    assert rows["accuracy"].mean == 0.97 and not shown.pairs
    text = formats.to_markdown(shown)
    heads, cells = (text.splitlines()[i].split("|") for i in (0, 2 + shown.rows.index(found)))
    line = dict(zip(map(str.strip, heads), map(str.strip, cells), strict=True))
    assert line["mae"] == "0.5000 ± 0.2500" and line["test loss"] == "1.0000"
    assert line["accuracy"] == "" == line["correct"]
    for show in formats.FORMATS.values():
        assert show(shown)


@pytest.mark.parametrize("name", ["correct", "status", "group", "#", "seconds", "optimizer"])
def test_a_metric_hides_no_column_of_the_same_name(name):
    none = dict.fromkeys(("test_correct", "test_total", "test_accuracy", "readme_accuracy"))
    runs = [record(s) | none | {"test_metrics": {name: 0.5}, "test_loss": 2.0} for s in (0, 1)]
    lines = formats.to_markdown(table(*runs)).splitlines()
    heads, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[::2][:2])
    found = dict(zip(heads, cells, strict=True))
    assert len(found) == len(heads)
    assert found["status"] == "completed" and found["optimizer"] == "sgd" and found["#"] == "0"
    assert [cell for head, cell in found.items() if head in (name, f"test {name}")].count(
        "0.5000 ± 0.0000"
    ) == 1


def test_no_directory_and_no_results(tmp_path):
    with pytest.raises(LabError, match="no such directory"):
        results.read_results(tmp_path / "nothing")
    assert results.read_results(tmp_path) == ([], [])
    empty = table()
    assert "No results to show" in formats.to_text(
        empty
    ) and "No results to show" in formats.to_markdown(empty)
    assert (
        json.loads(formats.to_json(empty))["rows"] == [] and formats.to_csv(empty).count("\n") == 1
    )


def test_not_a_number_is_no_figure():
    for value in ("NaN", "Infinity", "1e999"):
        text = json.dumps(record(0, status="nonfinite")).replace("null", value, 1)
        with pytest.raises(LabError, match=r"test_correct is (nan|inf): must be an integer"):
            results.parse_result(text, "x")
    shown = table(record(clip=float("nan")))  # in a config it must not reach the table's JSON
    assert "NaN" not in formats.to_json(shown) and shown.rows[0].config["clip"] is None


# -------------------------------------------------------------------- printing


def mixed():
    return table(
        *readme_grid(2),
        record(0, activation="relu", watch=["weights"], data="a|b"),
        record(0, status="nonfinite", learning_rate=9.0),
    )


def test_text_of_the_nine_rows_fits_a_terminal():
    text = formats.to_text(table(*readme_grid()))
    assert max(map(len, text.splitlines())) <= 120
    first = text.splitlines()[2].split()
    assert first[:6] == ["1", "128", "256", "0.01", "sgd", "0.9752"]
    assert first[8] == "±" and len(first[7]) == len(first[9]) == len("0.9752")
    assert "5 of 5 collapsed (class 0)" in text and "in 9 of 9 rows" in text


def test_without_a_row_of_the_readme_there_is_no_column_for_it():
    for show in (formats.to_text, formats.to_markdown):
        assert "README" in show(table(record())) and "same rule" in show(table(record()))
        other = show(table(record(batch_size=32)))
        assert "README" not in other and "same rule" not in other


def test_text_says_which_interval():
    one, five = (
        formats.to_text(table(record())),
        formats.to_text(table(*row_of_seeds([9700, 9710]))),
    )
    assert "0.9665..0.9732 w" in one and "Wilson's 95% interval" in one and "Student" not in one
    assert "Student's t" in five and "Wilson" not in five and ".. w" not in five


def test_markdown_has_one_width():
    lines = [line for line in formats.to_markdown(mixed()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 11
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert any("a\\|b" in line for line in lines)


def test_csv_reads_back():
    shown = mixed()
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(shown)), strict=True))
    assert len(rows) == len(shown.rows) and not any(None in row for row in rows)
    for line, row in zip(rows, shown.rows, strict=True):
        assert line["optimizer"] == row.config["optimizer"] and line["status"] == row.status
        assert line["mean"] == ("" if row.mean is None else repr(row.mean))
        assert [int(x) for x in line["correct"].split(",") if x] == row.correct


def test_the_columns_of_a_csv_have_names_of_their_own():
    """Also those of what configs differ in."""
    told = [{"loss": "softmax_cross_entropy"}, {"data": "a/b"}, {}]
    rows = [row | {"test_loss": 0.25} for one in told for row in row_of_seeds([9700, 9710], **one)]
    found = list(csv.reader(io.StringIO(formats.to_csv(table(*rows)))))
    assert len({*found[0]}) == len(found[0]) and {"loss", "data"} <= {*found[0]}
    lines = [dict(zip(found[0], line, strict=True)) for line in found[1:]]
    assert {line["test_loss"] for line in lines} == {"0.25"}
    assert {line["data"] for line in lines} == {"mnist", "a/b"}


def test_json_is_strict_and_whole():
    def refuse(constant):
        raise AssertionError(constant)

    shown = mixed()
    data = json.loads(formats.to_json(shown), parse_constant=refuse)
    assert [row["mean"] for row in data["rows"]] == [row.mean for row in shown.rows]
    assert (
        data["rows"][0]["config"]["batch_size"] == 256 and "seed" not in data["rows"][0]["config"]
    )
    assert len(data["pairs"]) == 28 and data["notes"] == shown.notes
