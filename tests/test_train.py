"""The training program from its command line to what it leaves behind and says."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from unittest import mock

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf
from references import readme_accuracy

from lab import data
from lab.training import build, progress

STEPS, EVERY = 230, 50
EVALUATIONS = [50, 100, 150, 200, 230]
RUN = [f"--training_steps={STEPS}", f"--display_step={EVERY}", "--seed=5"]
SIZES = {
    "h1/weights": 784 * 128,
    "h1/bias": 128,
    "h2/weights": 128 * 256,
    "h2/bias": 256,
    "logits/weights": 256 * 10,
    "logits/bias": 10,
}
SIZES |= {f"{tag}/gradient": size for tag, size in SIZES.items()}

# Everything that the program can say goes to these two ends of the last lines.
LIES_IN, LOOK = "run directory:  ", "view it with  "


def last_lines(outcome):
    """The run's directory and TensorBoard's command, from the last three lines."""
    *_, where, view, look = outcome.out.splitlines()
    assert where.startswith(LIES_IN)
    assert shlex.split(view.partition(":")[2])[1:] == [where.removeprefix(LIES_IN)]
    assert look.startswith(LOOK)
    return where.removeprefix(LIES_IN), look.removeprefix(LOOK)


def contents(directory):
    """Every file below a directory, by its path there."""
    directory = pathlib.Path(directory)
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def figures(result):
    """What has to be the same in every run of one config and seed."""
    return {k: v for k, v in result.items() if k not in ("seconds", "startup_seconds")}


def assert_one_line(outcome, status, *words):
    """Asserts that a program ended with one line on standard error that has all these words."""
    assert outcome.status == status
    assert outcome.err.startswith("train: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err


def checkpoints(run):
    """The variables of the first and the last checkpoint."""
    folders = sorted((run.directory / "checkpoints").glob("step-*"))
    return folders[0] / "variables", folders[-1] / "variables"


class Home:
    """A run that the program made in a process of its own: its folder, output and record."""

    def __init__(self, cwd, outcome):
        self.cwd, self.outcome = cwd, outcome
        self.relative, self.command = last_lines(outcome)
        self.directory = cwd / self.relative
        self.record = events.read(self.directory)
        self.result = programs.result(self.directory)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("home")
    outcome = forks.train(*RUN, cwd=cwd)
    assert outcome.status == 0, outcome.err
    return Home(cwd, outcome)


@pytest.fixture(scope="module")
def labels():
    return data.load().y_test


# ------------------------------------------------------------------ the record


def test_the_disk_that_a_run_takes_is_told_before_it(run):
    assert_told(run.outcome.out, run.directory)


@pytest.mark.parametrize(
    "flags",
    [
        ("--training_steps=3",),
        ("--training_steps=40", "--display_step=1", "--watch=", "--checkpoint_every=15"),
        ("--training_steps=30", "--histogram_every=7", "--display_step=4", "--microbatches=2"),
    ],
    ids=["three steps", "mostly evaluations", "few histograms"],
)
def test_the_disk_that_small_runs_take(tmp_path, tiny, flags):
    small = ["--n_hidden_1=8", "--n_hidden_2=6", "--batch_size=20", "--xla=off", "--run_name=run"]
    data = forks.write_idx(tmp_path / "idx", tiny)
    outcome = programs.train(*small, *flags, f"--data={data}", f"--logdir={tmp_path}")
    assert outcome.status == 0, outcome.err
    assert_told(outcome.out, tmp_path / "run")


def assert_told(out, directory):
    """The events within 2%; all that lies there within 5%, or 12 kB: config and result are not
    told, and the checkpoints of a tiny network are mostly their list of evaluations."""
    (line,) = [line for line in out.splitlines() if line.startswith("on disk: ")]
    number, unit, count, saved, unit_saved = re.fullmatch(
        r"on disk: ([\d.]+) (\w+) of events.*, and (\d) checkpoints of ([\d.]+) (\w+)", line
    ).groups()
    powers = {"kB": 1e3, "MB": 1e6}
    told, each = float(number) * powers[unit], float(saved) * powers[unit_saved]
    sizes = {name: len(content) for name, content in contents(directory).items()}
    assert sum(n for name, n in sizes.items() if "tfevents" in name) == pytest.approx(told, 0.02)
    folders = {os.path.dirname(name) for name in sizes if name.startswith("checkpoints")}
    assert len(folders) == int(count)
    assert sum(sizes.values()) == pytest.approx(told + int(count) * each, 0.05, 12_000)


@pytest.mark.numbers
def test_every_histogram_tag_holds_every_step(run):
    histograms = events.histograms(run.record)
    assert sorted(histograms) == sorted(SIZES)
    for tag, size in SIZES.items():
        assert histograms[tag].steps == list(range(1, STEPS + 1)), tag
        left, right, counts = np.moveaxis(histograms[tag].values.astype(np.float64), -1, 0)
        assert (counts.sum(1) == size).all(), tag
        assert (left[:, 0] < right[:, -1]).all()
        np.testing.assert_array_equal(left[:, 1:], right[:, :-1])


@pytest.mark.numbers
def test_norms_stand_at_every_step_and_distances_at_the_evaluations(run):
    """As far as the histograms and the checkpoints tell them."""
    steps = np.arange(1, STEPS + 1)
    for tag in SIZES:
        norms = run.record[f"{tag}/norm"]
        assert norms.plugin == "scalars" and norms.steps == steps.tolist(), tag
        left, right, counts = np.moveaxis(run.record[tag].values.astype(np.float64), -1, 0)
        far, near = np.maximum(left**2, right**2), np.minimum(left**2, right**2)
        near = np.where(left * right < 0, 0, near)
        assert (norms.values <= 1.0001 * np.sqrt((far * counts).sum(1))).all(), tag
        assert (norms.values >= 0.9999 * np.sqrt((near * counts).sum(1))).all(), tag
    first, last = (tf.train.load_checkpoint(str(path)) for path in checkpoints(run))
    for tag in (tag for tag in SIZES if not tag.endswith("/gradient")):
        assert run.record[f"{tag}/update/norm"].steps == steps.tolist()
        distance = run.record[f"{tag}/distance"]
        assert distance.plugin == "scalars" and distance.steps == EVALUATIONS
        start, end = first.get_tensor(tag), last.get_tensor(tag)
        expected = np.linalg.norm(np.float64(end) - start)
        np.testing.assert_allclose(distance.values[-1], expected, 1e-6)
        np.testing.assert_allclose(run.record[f"{tag}/norm"].values[-1], np.linalg.norm(end), 1e-5)


@pytest.mark.numbers
def test_scalars_stand_at_every_step_and_those_of_the_test_set_at_the_evaluations(run):
    for tag in ("loss", "accuracy"):
        assert run.record[tag].plugin == "scalars"
        assert run.record[tag].steps == list(range(1, STEPS + 1))
    for tag, name in (("test-loss", "test_loss"), ("test-accuracy", "test_accuracy")):
        assert run.record[tag].plugin == "scalars"
        assert run.record[tag].steps == EVALUATIONS
        course = np.float32(run.result["evaluations"][name])
        np.testing.assert_array_equal(run.record[tag].values, course)
    # Accuracies of a batch are multiples of 1/256; the loss is a sum over the batch.
    hits = run.record["accuracy"].values * 256
    np.testing.assert_array_equal(hits, np.round(hits))
    assert 256 * 2 < run.record["loss"].values[0] < 256 * 4
    assert run.record["loss"].values[-10:].mean() < 256 * 1.5


def test_every_batch_is_another_one(run):
    assert len(np.unique(run.record["loss"].values)) > 0.95 * STEPS


# ------------------------------------------------------------------ result.json


def test_result_has_every_field(run):
    assert set(run.result) >= {
        *("config", "status", "step", "test_correct", "test_total", "test_accuracy"),
        *("readme_accuracy", "test_loss", "seconds", "startup_seconds", "versions", "devices"),
        *("collapsed", "frozen", "effective_learning_rate", "nonfinite", "evaluations"),
    }
    result, config = run.result, run.result["config"]
    assert (result["status"], result["step"]) == ("completed", STEPS)
    assert (result["test_total"], result["collapsed"], result["frozen"]) == (10000, None, [])
    assert config["training_steps"] == STEPS
    assert config["seed"] == 5
    assert config["optimizer"] == "sgd"
    assert config["learning_rate"] == 0.01
    assert result["effective_learning_rate"] == 0.01 * 256
    assert result["seconds"] > 0
    assert result["startup_seconds"] > 0
    import tensorflow as tf

    assert result["versions"]["tensorflow"] == tf.__version__
    assert result["versions"]["numpy"] == np.__version__
    assert result["devices"]


@pytest.mark.numbers
def test_figures_of_the_result_agree_with_each_other_and_with_the_record(run):
    result = run.result
    assert result["test_accuracy"] == result["test_correct"] / result["test_total"]
    assert result["evaluations"]["step"] == EVALUATIONS
    assert result["evaluations"]["test_accuracy"][-1] == result["test_accuracy"]
    assert result["evaluations"]["test_loss"][-1] == result["test_loss"]
    # One batch of the 40 has 16 examples and counts sixteenfold.
    assert abs(result["readme_accuracy"] - result["test_accuracy"]) < 1 / 40
    assert 0.3 < result["test_accuracy"] < 0.95


def test_nothing_half_written_is_left(run):
    names = sorted(path.name for path in run.directory.iterdir())
    assert not [name for name in names if name.endswith(".tmp")]
    assert {"config.json", "result.json"} <= set(names)
    config = json.loads((run.directory / "config.json").read_text())["config"]
    assert config == run.result["config"]
    assert len(events.files(run.directory)) == 1


def test_the_recipes_figure_of_a_model_that_always_says_0(labels):
    assert int((labels == 0).sum()) == 980
    assert round(readme_accuracy(labels == 0), 5) == 0.09717


@pytest.mark.numbers
def test_figures_and_last_histograms_are_those_of_the_final_model(tmp_path, labels):
    """The model is caught as the program makes it; all that follows is NumPy in float64."""
    trainings, make = [], build.make_training

    def catch(*arguments):
        training, traced = make(*arguments)
        trainings.append(training)
        return training, traced

    with mock.patch.object(build, "make_training", catch):
        outcome = programs.train(
            *("--training_steps=45", "--display_step=20", "--optimizer=rmsprop", "--seed=1"),
            *("--histogram_every=5", "--reduction=mean", f"--logdir={tmp_path}"),
            *("--watch=weights", "--n_hidden_1=24", "--n_hidden_2=16", "--xla=off"),
        )
    assert outcome.status == 0
    directory, _ = last_lines(outcome)
    result, record = programs.result(directory), events.read(directory)
    x = data.load().x_test / 255.0
    for layer in trainings[0].model.model.layers:
        for name in ("weights", "bias"):
            series = record[f"{layer.name}/{name}"]
            assert series.steps == [5, 10, 15, 20, 25, 30, 35, 40, 45]
            events.assert_histogram(series.values[-1], getattr(layer, name).numpy())
        z = x @ layer.weights.numpy().astype(np.float64) + layer.bias.numpy()
        x = 1 / (1 + np.exp(-z))
    assert layer.name == "logits"
    correct = z.argmax(1) == labels
    log_softmax = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert result["test_correct"] == correct.sum()
    assert result["readme_accuracy"] == pytest.approx(readme_accuracy(correct), abs=1e-12)
    loss = -np.maximum(log_softmax[np.arange(10000), labels], np.log(1e-9)).mean()
    assert result["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert result["effective_learning_rate"] == 0.01
    assert record["test-accuracy"].steps == [20, 40, 45]
    assert 1 < record["loss"].values[0] < 4  # a mean, not a sum


# ------------------------------------------------------------------ what it says


def test_plain_lines_where_there_is_no_terminal(run):
    lines = run.outcome.out.splitlines()
    assert "784-128-256-10" in lines[0]
    assert " 2.56 " in lines[1]  # the effective learning rate
    reports = [line for line in lines if line.startswith("step ")]
    assert [int(line.split()[1]) for line in reports] == EVALUATIONS
    for line, accuracy in zip(reports, run.result["evaluations"]["test_accuracy"], strict=True):
        assert line.endswith(f"test-accuracy {accuracy:.4f}")
    assert len(lines) == 3 + len(EVALUATIONS) + 4
    assert "\r" not in run.outcome.out
    assert run.outcome.err == ""


def test_the_last_lines_are_accuracy_with_interval_folder_and_command(run):
    from scipy import stats

    conclusion = run.outcome.out.splitlines()[-4]
    test = stats.binomtest(run.result["test_correct"], 10000)
    interval = test.proportion_ci(0.95, "wilson")
    assert f"{run.result['test_accuracy']:.4f}" in conclusion
    assert f" {interval.low:.4f} to {interval.high:.4f}" in conclusion
    assert f"{run.result['readme_accuracy']:.4f}" in conclusion
    assert run.relative == f"logs/{run.directory.name}"
    assert "tensorboard" in run.command and run.command.endswith(shlex.quote(run.relative))
    assert run.directory.is_dir()


@pytest.mark.parametrize("name", ["it's one", "a b", "$HOME;x", "-x"])
def test_the_command_is_right_for_every_folder_name(name):
    command = progress.tensorboard_command(os.path.join(name, "r,lr=0.01"))
    words = ["sh", "-c", f'set -- {command}; printf "%s\\n" "$@"']
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(f"{name}/r,lr=0.01" in (word, word.partition("=")[2]) for word in printed)


def test_a_bar_on_a_terminal_and_a_clean_end_on_ctrl_c(tmp_path, idx_folder):
    arguments = [f"--data={idx_folder}", "--training_steps=1000000", "--display_step=20"]
    arguments += ["--batch_size=16", "--steps_per_loop=10", "--watch=", "--xla=off"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    child = forks.start(*arguments, terminal=os.ttyname(slave), cwd=tmp_path)
    shown, pressed, deadline = "", False, time.monotonic() + 120
    while piece := read_terminal(master):
        assert time.monotonic() < deadline, shown[-500:]
        if not shown:
            os.close(slave)  # the program has it
        shown += piece
        if not pressed and re.search(r"[1-9]\d*/1000000 .*test-accuracy", shown):
            os.write(master, b"\x03")
            pressed = True
    os.close(master)
    assert (pressed, child.wait().status) == (True, 130), shown
    lines = shown.replace("\r\n", "\n").splitlines()
    assert not [line for line in lines if re.match(r"step +\d+ +loss", line)]
    *_, conclusion, where, _, look = lines
    assert conclusion.startswith("interrupted")
    assert where.startswith(LIES_IN)
    assert look.startswith(LOOK)
    result = programs.result(tmp_path / where.removeprefix(LIES_IN))
    assert result["status"] == "interrupted"
    assert f"at step {result['step']}:" in conclusion


def read_terminal(master):
    """What has come on a terminal, or nothing when its other end is closed."""
    try:
        return os.read(master, 4096).decode(errors="replace")
    except OSError:  # that is how Linux says it
        return ""


# ------------------------------------------------------------------ wrong flags


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer=sdg"], ["--optimizer=sdg", "sgd, adam, rmsprop, adagrad, adadelta"]),
        (["--optimiser=sgd"], ["--optimiser", "--optimizer"]),
        (["--flagfile=absent"], ["absent"]),
    ],
    ids=lambda value: value[0],
)
def test_wrong_flags_end_in_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    outcome = programs.train(*arguments)
    assert_one_line(outcome, 2, *words)
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_and_wrong_flags_need_no_tensorflow_but_training_does(no_tensorflow, tmp_path):
    def run(*arguments):
        environment = {"PYTHONPATH": no_tensorflow}
        return programs.finish(
            programs.start(*arguments, cwd=tmp_path, env=programs.ENVIRONMENT | environment)
        )

    assert_one_line(run("--optimizer=sdg"), 2, "--optimizer=sdg")
    outcome = run("--help")
    assert (outcome.status, outcome.err) == (0, "")
    assert "--learning_rate" in outcome.out
    assert run().status == 99
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ other ends


def test_what_cannot_be_read_or_written_ends_in_one_line(tmp_path, idx_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_one_line(programs.train(f"--data={empty}"), 1, str(empty), "--data")
    assert_one_line(programs.train(f"--data={tmp_path / 'absent'}"), 1, "absent", "--data")
    (tmp_path / "file").touch()
    small = [f"--data={idx_folder}", "--batch_size=16", "--training_steps=1"]
    for place in (tmp_path / "file", "/proc/logs", "/dev/null/logs"):
        outcome = programs.train(f"--logdir={place}", *small)
        assert_one_line(outcome, 1, str(place), "--logdir")
        assert LIES_IN not in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "idx"]


@pytest.mark.parametrize(
    "more", [pytest.param([], marks=pytest.mark.slow), ["--overwrite"]], ids=["plain", "overwrite"]
)
@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        {"thesis.txt": "years of work", "lock": "mine"},
        {"thesis.txt": "years of work", "config.json": '{"model": "mine"}'},
        {"thesis.txt": "years of work", "config.json": "not JSON"},
    ],
    ids=["text", "lock", "config", "odd-config"],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, idx_folder, files, more):
    folder = tmp_path / "logs" / "mine"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    before = contents(folder)
    outcome = programs.train(
        *(f"--data={idx_folder}", "--batch_size=16", "--training_steps=1", *more),
        *(f"--logdir={tmp_path / 'logs'}", "--run_name=mine"),
    )
    after = contents(folder)
    # Where there was none, a lock of its own may stay.
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) <= {"lock"}
    assert_one_line(outcome, 1, str(folder), "--run_name")


def test_a_finished_run_is_run_again_only_with_overwrite(run, tmp_path):
    logdir = tmp_path / "logs"
    shutil.copytree(run.cwd / "logs", logdir)
    directory = logdir / run.directory.name
    before = contents(directory)
    outcome = programs.train(*RUN, f"--logdir={logdir}")
    assert outcome.status == 0
    assert "already" in outcome.out
    assert "--overwrite" in outcome.out
    assert last_lines(outcome)[0] == str(directory)
    assert contents(directory) == before
    # Another config under the same name is refused, and says what differs.
    named = [f"--logdir={logdir}", f"--run_name={directory.name}"]
    other = programs.train(*RUN[:2], *named, "--seed=6")
    assert_one_line(other, 1, str(directory), "seed", "--overwrite", "--run_name")
    assert contents(directory) == before


@pytest.mark.slow
@pytest.mark.numbers
def test_the_same_seed_gives_the_same_record(run, tmp_path):
    """Also in loops of another length, and in place of the run that was there."""
    logdir = tmp_path / "logs"
    shutil.copytree(run.cwd / "logs", logdir)
    directory = logdir / run.directory.name
    before = contents(directory)
    again = programs.train(*RUN, f"--logdir={logdir}", "--overwrite", "--steps_per_loop=37")
    assert again.status == 0
    assert figures(programs.result(directory)) == figures(run.result)
    assert len(events.files(directory)) == 1
    assert events.files(directory)[0] not in [str(directory / name) for name in before]
    record = events.read(directory)
    # Texts and HParams hold no figures.
    tags = [tag for tag, series in run.record.items() if series.plugin in ("scalars", "histograms")]
    assert len(tags) == 47
    for tag in tags:
        assert record[tag].steps == run.record[tag].steps
        np.testing.assert_array_equal(record[tag].values, run.record[tag].values)
    assert "config.json" in contents(directory)


def after_each_loop(do):
    """Lets the program do something more after each loop."""
    advance = progress.Console.advance

    def advance_and_do(self, step):
        advance(self, step)
        do()

    return mock.patch.object(progress.Console, "advance", advance_and_do)


def test_a_signal_in_the_last_loop_does_not_unmake_the_run(tmp_path, idx_folder):
    with after_each_loop(lambda: signal.raise_signal(signal.SIGTERM)):
        outcome = programs.train(
            *(f"--data={idx_folder}", "--training_steps=1", "--watch=", "--xla=off"),
            *("--batch_size=16", f"--logdir={tmp_path}"),
        )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    directory, _ = last_lines(outcome)
    # One step may leave it with one class for all.
    assert programs.result(directory)["status"] in ("completed", "collapsed")
    assert outcome.status == 0
    assert events.read(directory)["test-accuracy"].steps == [1]


def test_a_run_directory_that_is_deleted_meanwhile_ends_in_one_line(tmp_path, idx_folder):
    with after_each_loop(lambda: shutil.rmtree(tmp_path / "logs", ignore_errors=True)):
        outcome = programs.train(
            *(f"--data={idx_folder}", "--training_steps=20", "--display_step=5", "--watch="),
            *("--batch_size=16", "--xla=off", f"--logdir={tmp_path / 'logs'}"),
        )
    assert_one_line(outcome, 1, str(tmp_path / "logs"))
    assert LIES_IN not in outcome.out


def test_nothing_watched_leaves_scalars_alone(tmp_path, idx_folder):
    """And the same again, in place of the run that was there."""
    flags = [f"--data={idx_folder}", "--training_steps=20", "--display_step=10", "--watch="]
    flags += ["--batch_size=16", "--xla=off", f"--logdir={tmp_path}"]
    outcome = programs.train(*flags)
    assert outcome.status == 0
    record = events.read(last_lines(outcome)[0])
    assert events.histograms(record) == {}
    assert record["loss"].steps == record["accuracy"].steps == list(range(1, 21))
    assert record["test-loss"].steps == [10, 20]
    (first,) = events.files(last_lines(outcome)[0])
    assert programs.train(*flags, "--overwrite").status == 0
    assert first not in events.files(last_lines(outcome)[0])
    again = events.read(last_lines(outcome)[0])
    np.testing.assert_array_equal(again["loss"].values, record["loss"].values)
    assert again["loss"].steps == record["loss"].steps


@pytest.mark.slow
def test_a_profile_when_asked_for(tmp_path, idx_folder):
    outcome = programs.train(
        *(f"--data={idx_folder}", "--training_steps=20", "--display_step=10", "--profile"),
        *("--batch_size=16", f"--logdir={tmp_path}"),
    )
    assert outcome.status == 0
    names = list(contents(last_lines(outcome)[0]))
    assert [name for name in names if name.endswith(".xplane.pb")]


# ------------------------------------------------------------------ the whole recipe


def full_run(tmp_path, *arguments):
    outcome = programs.finish(programs.start(*arguments, cwd=tmp_path))
    assert outcome.status == 0, outcome.err
    home = Home(tmp_path, outcome)
    assert home.result["step"] == 3000
    assert home.record["test-accuracy"].steps == list(range(100, 3001, 100))
    for tag in ("loss", "accuracy", *SIZES):
        assert home.record[tag].steps == list(range(1, 3001)), tag
    for tag, size in SIZES.items():
        assert (home.record[tag].values[:, :, 2].sum(1) == size).all(), tag
    return home


@pytest.mark.slow
@pytest.mark.numbers
def test_the_recipe_learns_as_the_readme_says(tmp_path):
    home = full_run(tmp_path)
    assert home.result["status"] == "completed"
    assert 0.955 <= home.result["test_accuracy"] <= 0.98
    last_ten = home.result["evaluations"]["test_accuracy"][-10:]
    assert np.mean(last_ten) == pytest.approx(0.97, abs=0.005)


@pytest.mark.slow
@pytest.mark.numbers
def test_the_recipe_at_a_rate_of_a_tenth_collapses_as_the_readme_says(tmp_path, labels):
    home = full_run(tmp_path, "--learning_rate=0.1")
    assert home.result["status"] == "collapsed"
    constant = labels == home.result["collapsed"]
    assert home.result["test_correct"] == constant.sum()
    if home.result["collapsed"] == 0:
        assert round(home.result["readme_accuracy"], 4) == 0.0972
    assert sorted(home.result["frozen"]) == sorted(list(SIZES)[:6])
    # Not NaN: the gradients are too small to change any weight.
    for tag in list(SIZES)[6:]:
        assert np.abs(home.record[tag].values[100:, :, :2]).max() < 1e-6, tag
    for tag in list(SIZES)[:6]:
        np.testing.assert_array_equal(
            home.record[tag].values[100:], home.record[tag].values[100:101].repeat(2900, 0)
        )


@pytest.mark.slow
@pytest.mark.numbers
def test_the_recipe_with_rmsprop_learns_as_the_readme_says(tmp_path):
    home = full_run(tmp_path, "--optimizer=rmsprop")
    assert home.result["status"] == "completed"
    assert home.result["test_accuracy"] == pytest.approx(0.978, abs=0.005)


@pytest.mark.slow
def test_one_program_serves_loops_of_all_lengths(idx_folder, tmp_path):
    """XLA writes down each program that it compiles: the loop's is there once."""
    outcome = forks.train(
        *(f"--data={idx_folder}", "--training_steps=23", "--display_step=9", "--watch="),
        *("--steps_per_loop=5", "--checkpoint_every=13", "--run_name=run"),
        cwd=tmp_path,
        environment={"XLA_FLAGS": f"--xla_dump_to={tmp_path}/programs"},
    )
    assert outcome.status == 0, outcome.err
    written = [path.name for path in (tmp_path / "programs").glob("*before_optimizations.txt")]
    assert len([name for name in written if "inference__run_" in name]) == 1, written


@pytest.mark.slow
def test_keras_is_loaded_only_where_it_is_used():
    """TensorFlow would import it along; a model that uses it has it, by both its names."""
    program = os.path.join(programs.CHILDREN, "keras_later.py")
    outcome = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
