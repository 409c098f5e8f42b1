"""Damaged and edited files of a run: a line that names file, field and value, no traceback."""

import json
import shutil

import forks
import pytest
import small_runs
from forks import RUN, STEPS

from lab.analysis.runs import read_runs
from lab.compare import formats, results, table
from lab.errors import LabError
from lab.record import result_file
from lab.report import main

WRONG = [None, [], {}, "text", -1, 0.5, float("nan"), 10**400, True, [1, "x"]]


def fields(value, path=()):
    """The path of every field of a JSON object, those of its objects included."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from fields(inner, (*path, key))


def changed(value, path, new):
    """A copy of a JSON object with one field changed."""
    key, *rest = path
    return {**value, key: changed(value[key], rest, new) if rest else new}


def test_every_field_of_a_result_with_each_wrong_value(whole):
    """It is left out with a line, or it still makes a table; nothing else may happen."""
    path = whole / "result.json"
    right = json.loads(path.read_text())
    # Of runs with files and objects of the user's alone.
    right |= {"given": ["model"], **dict.fromkeys(("model_files", "loss_files", "rule"), "a")}
    refused = set()
    for field in fields(right):
        for new in WRONG:
            text = json.dumps(changed(right, field, new))
            try:
                found = results.parse_result(text, str(path))
            except LabError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                assert field[-1] in str(error) or field[0] in str(error)
                refused.add(field)
                continue
            for form in formats.FORMATS.values():
                form(table.make_table([found]))
    told = {"config", "seed", "status", "step", "test_correct", "collapsed", "nonfinite"}
    assert {field[-1] for field in refused} >= {*result_file.StoredResult.__annotations__} - {
        "data"
    }
    assert {field[-1] for field in refused} >= told | right["config"].keys() - {"data"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (("config", "learning_rate"), [0.1], "config.learning_rate is [0.1]"),
        (("config", "seed"), 2**64, "config.seed is 18446744073709551616"),
        (("config", "seed"), 0.5, "config.seed is 0.5"),
        (("replicas",), "two", "replicas is 'two'"),
        (("devices",), 3, "devices is 3"),
        (("status",), "done", "status is 'done'"),
        (("test_correct",), 42, "test_correct is 42"),
    ],
)
def test_the_line_names_file_field_and_value(whole, field, value, words):
    path = whole / "result.json"
    text = json.dumps(changed(json.loads(path.read_text()), field, value))
    with pytest.raises(LabError) as raised:
        result_file.parse_result(text, "result.json")
    assert str(raised.value).startswith("result.json") and words in str(raised.value)


@pytest.mark.slow
def test_the_page_of_edited_runs(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Every edit that the types allow, each a run of its own, beside the runs as they were: the
    page is made, and every run is in it or has its line."""
    trained = small_runs.trained(tmp_path_factory.getbasetemp())
    logdir = tmp_path / "runs"
    shutil.copytree(trained, logdir)
    source = next(logdir.glob("sgd,lr=1,*seed=1"))
    whole = json.loads((source / "result.json").read_text())
    copies = 0
    for field in fields(whole):
        for new in [*WRONG, 2**40, 1e30]:
            text = json.dumps(changed(whole, field, new))
            try:
                result_file.parse_result(text, "")
            except LabError:
                continue
            if field[0] in ("versions", "cpus", "fingerprint", "startup_seconds", "device"):
                continue  # nothing is made of them
            copies += 1
            shutil.copytree(source, logdir / f"edited-{copies}")
            (logdir / f"edited-{copies}" / "result.json").write_text(text)
    assert copies > 20
    monkeypatch.setattr("sys.argv", ["report", str(logdir)])
    assert main.main() == 0, capsys.readouterr().err
    runs = read_runs(str(logdir))
    left_out = [line for line in runs.problems if "left out" in line]
    assert len(left_out) + sum(len(group.runs) for group in runs.groups) >= copies + 5


@pytest.mark.parametrize(
    "stride", [len(WRONG), *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 1))]
)
def test_every_field_of_a_config_and_a_manifest_with_wrong_values(program, whole, stride):
    """bin/train refuses the directory. Of the fields the slow cases take each, not every third."""
    directory = program.copy(whole)
    newest = forks.checkpoints(directory)[STEPS]
    for path in (directory / "config.json", newest / "manifest.json"):
        original = path.read_text()
        (directory / "result.json").unlink(missing_ok=True)
        names = [field for field in fields(json.loads(original)) if len(field) == 1]
        for field in names[:: 3 if stride == len(WRONG) else 1]:
            for new in WRONG[::stride]:
                path.write_text(json.dumps(changed(json.loads(original), field, new)))
                outcome = program.here(directory, *RUN, "--batch_size=17")  # another run
                forks.assert_one_line(outcome, 1, directory, "--overwrite", "--run_name")
        path.write_text(original)


@pytest.mark.slow
def test_a_manifest_with_a_wrong_value_is_passed_over(program, whole):
    directory = program.copy(whole)
    (directory / "result.json").unlink()
    path = forks.checkpoints(directory)[STEPS] / "manifest.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), ("state", "noise"), [1])))
    out = forks.assert_goes_on(program, directory, whole)
    assert forks.passed_over(out) == [STEPS]
