"""Grids: their files, the processes that run them, what stops them, and the table at the end."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
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
from concurrent import futures
from unittest import mock

import numpy as np
import programs
import pytest
from conftest import idx_bytes

from lab import machine
from lab.compare import table as results
from lab.processes import pool
from lab.settings import command_line, grid_file
from lab.settings.config import Config
from lab.training import main

STEPS = 200
SMALL = [
    *("--n_hidden_1=8", "--n_hidden_2=8", "--activation=tanh", "--init_stddev=0.3"),
    *("--batch_size=16", f"--training_steps={STEPS}", "--display_step=20", "--steps_per_loop=2"),
    *("--watch=", "--xla=off"),
]
# Two configs; with two seeds, four trials.
LINES = """\
# Nothing but small networks.
--optimizer=sgd --learning_rate=0.0005

--optimizer=adam --learning_rate=0.001  # faster
"""
CONFIGS = [("sgd", 0.0005), ("adam", 0.001)]
TRIALS = [(*config, seed) for seed in (0, 1) for config in CONFIGS]


def parse(*arguments):
    """The trials of a command line, without its program's name."""
    return command_line.parse(["train", *arguments])[0]


def write(folder, text):
    """A grid file, as an argument."""
    path = folder / "mine.flags"
    path.write_text(text)
    return f"--grid={path}"


# ------------------------------------------------------------------ grid files


def test_a_line_is_as_many_trials_as_its_lists_have_products(tmp_path):
    mine = write(
        tmp_path,
        "--optimizer=adam --learning_rate=0.1\n"
        "--learning_rate=0.3,0.2 --n_hidden_1=5,4 --optimizer=sgd\n",
    )
    expected = [("adam", 0.1, 128)] + [("sgd", r, n) for n in (5, 4) for r in (0.3, 0.2)]
    assert [(c.optimizer, c.learning_rate, c.n_hidden_1) for c in parse(mine)] == expected
    with_seeds = [
        (c.optimizer, c.learning_rate, c.n_hidden_1, c.seed) for c in parse(mine, "--seeds=7,2")
    ]
    assert with_seeds == [(*trial, seed) for seed in (7, 2) for trial in expected]
    whole = parse(write(tmp_path, LINES), "--seeds=2")
    assert [(c.optimizer, c.learning_rate, c.seed) for c in whole] == TRIALS


def test_a_line_may_hold_comments_quotes_and_any_space(tmp_path):
    mine = write(
        tmp_path,
        "\n   \n#--optimizer=adam\n"
        "  --optimizer='adam'\t\"--learning_rate=0.5\"   # --seed=3\n"
        "--data='a folder, # and all' --epsilon_inside_root\n"
        "--noepsilon_inside_root --watch= --optimizer adagrad",
    )
    assert parse(mine) == [
        Config(optimizer="adam", learning_rate=0.5),
        Config(data="a folder, # and all", epsilon_inside_root=True),
        Config(watch=(), optimizer="adagrad"),
    ]


def test_the_command_line_wins_over_every_line(tmp_path):
    mine = write(tmp_path, "--optimizer=sgd --training_steps=10,20\n--optimizer=adam\n")
    assert parse(mine, "--training_steps=7") == [
        Config(optimizer="sgd", training_steps=7),
        Config(optimizer="adam", training_steps=7),
    ]
    assert parse(mine, "--training_steps=7", "--n_hidden_1=4,5") == [
        Config(optimizer=optimizer, training_steps=7, n_hidden_1=units)
        for optimizer in ("sgd", "adam")
        for units in (4, 5)
    ]
    # The value that happens to be the default wins, too.
    assert {c.training_steps for c in parse(mine, "--training_steps=3000")} == {3000}


def test_a_line_may_say_its_seed(tmp_path):
    mine = write(tmp_path, "--seed=3\n--seed=4\n")
    assert [c.seed for c in parse(mine)] == [3, 4]
    assert [c.seed for c in parse(mine, "--seed=9")] == [9]
    assert [c.seed for c in parse(mine, "--seeds=5,2")] == [5, 2]


def test_a_trial_that_two_lines_mean_runs_once(tmp_path):
    mine = write(tmp_path, "--learning_rate=0.1,0.5\n--learning_rate=0.10,1e-1\n--batch_size=1\n")
    assert parse(mine) == [
        Config(learning_rate=0.1),
        Config(learning_rate=0.5),
        Config(batch_size=1),
    ]
    assert parse(mine, "--learning_rate=0.1", "--batch_size=2") == [
        Config(learning_rate=0.1, batch_size=2)
    ]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5])
def test_shards_of_a_grid_hold_each_trial_once(tmp_path, shards):
    line = [write(tmp_path, LINES), "--seeds=2"]
    parts = [parse(*line, f"--shard={i}/{shards}") for i in range(shards)]
    assert sum(map(len, parts)) == len(TRIALS)
    assert {*itertools.chain(*parts)} == {*parse(*line)}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def assert_refused(outcome, *words):
    """Asserts that the program ended with status 2 and one line that has these words."""
    assert (outcome.status, outcome.out) == (2, "")
    assert re.fullmatch(r"train: .*\n", outcome.err), outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--optimizer=sdg", ["--optimizer=sdg", "adagrad"]),
        ("--seed=1,2", ["--seed=1,2"]),
        ("--learnig_rate=1", ["--learnig_rate", "--learning_rate"]),
        ("--optimizer='sgd", ["quotation"]),
        ("--logdir=elsewhere", ["--logdir"]),  # of the program, not of a trial
        ("--grid=readme", ["--grid"]),
        ("--help", ["help"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_named_before_anything_runs(tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    mine = write(tmp_path, f"# one\n--optimizer=adam\n\n{line}\n--optimizer=sgd\n")
    monkeypatch.setattr(pool, "run", lambda *_: pytest.fail("the grid ran"))
    assert_refused(programs.train(mine), f"{tmp_path}/mine.flags:4:", *words)
    assert os.listdir(tmp_path) == ["mine.flags"]


def test_a_grid_that_is_not_there_or_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe--\x80")
    for name in ("readmee", "binary", ".", "lab/settings/grids/absent.flags"):
        assert_refused(programs.train(f"--grid={name}"), f"--grid={name}", *grid_file.names())
    assert os.listdir(tmp_path) == ["binary"]


def test_a_run_name_is_for_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(programs.train(write(tmp_path, LINES), "--run_name=x"), "--run_name=x")
    one = write(tmp_path, "--optimizer=adam")
    assert_refused(programs.train(one, "--run_name=x", "--seeds=2"), "--run_name=x")
    # Each shard is one run here; under one name they would meet in one folder.
    assert_refused(programs.train("--seeds=2", "--shard=0/2", "--run_name=x"), "--run_name=x")
    assert parse(one, "--run_name=x") == [Config(optimizer="adam")]


@pytest.mark.parametrize(
    "arguments",
    [["--grid=mine.flags"], ["--optimizer=sgd,adam", "--shard=2/3"]],
    ids=["file", "shard"],
)
def test_no_trial_at_all_is_no_crash(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "# nothing yet\n\n")
    outcome = programs.train(*arguments)
    # An empty shard of an array job has done its work; an empty file is somebody's mistake.
    assert outcome.status == (0 if "--shard=2/3" in arguments else 2)
    assert (outcome.out + outcome.err).strip()


@pytest.mark.parametrize("name", grid_file.names())
def test_grids_that_come_with_the_lab(name):
    trials = parse(f"--grid={name}", "--seeds=3")
    assert len(trials) > 3
    # File systems that fold case and the limit on names are the reason for these two.
    assert len({trial.run_name.lower() for trial in trials}) == len(trials)
    assert max(len(trial.run_name.encode()) for trial in trials) < 256
    path = os.path.join(grid_file.FOLDER, f"{name}.flags")
    assert parse(f"--grid={path}", "--seeds=3") == trials
    assert trials[: len(trials) // 3] == parse(f"--grid={name}")
    assert {trial.training_steps for trial in parse(f"--grid={name}", "--training_steps=300")} == {
        300
    }


def test_the_grids_are_those_of_the_folder():
    folder = pathlib.Path(programs.ROOT, "lab", "settings", "grids")
    assert grid_file.names() == sorted(path.stem for path in folder.glob("*.flags"))
    assert "readme" in grid_file.names()


def test_the_readme_grid_is_the_readmes_rows():
    assert parse("--grid=readme") == [
        Config(n_hidden_1=first, n_hidden_2=second, learning_rate=rate, optimizer=optimizer)
        for first, second, rate, optimizer, _ in results.README_ROWS
    ]


# ------------------------------------------------------------------ what the parent does


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts grid_worker.py, which answers at once, in the worker's place: `stand_in(kind)`."""
    monkeypatch.chdir(tmp_path)
    program = os.path.join(programs.CHILDREN, "grid_worker.py")

    def put(*kind):
        path = tmp_path / "stand_in"
        path.write_text(
            f"#!/bin/sh\nexec {shlex.join([sys.executable, program, *map(str, kind)])}\n"
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def answers(outcome):
    """By seed, what the stand-in answered."""
    found = re.findall(r"seed=(\d+): failed: (.*)$", outcome.out, re.M)
    assert len(dict(found)) == len(found)
    return {int(seed): answer for seed, answer in found}


@pytest.mark.parametrize(
    ("visible", "jobs", "gpus"),
    [("4,7", 0, ["4", "7"]), ("4,7", 3, ["4", "4", "7"]), ("GPU-a1,4", 1, ["GPU-a1"])],
)
def test_each_trial_gets_a_gpu(stand_in, monkeypatch, visible, jobs, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    stand_in("gpu", len(gpus))
    outcome = programs.train(f"--seeds={max(2, len(gpus))}", f"--jobs={jobs}")
    assert outcome.status == 1
    assert sorted({*answers(outcome).values()}) == sorted({*gpus})
    if len(gpus) > 1:  # as many trials as workers, each of which took one
        assert sorted(answers(outcome).values()) == gpus


@pytest.mark.parametrize(
    ("devices", "visible"), [("gpu:2", "4,7"), ("GPU:1", "4,7"), ("cpu:1", ""), ("CPU:0,CPU:1", "")]
)
def test_gpus_that_are_named_are_left_to_each_trial(stand_in, monkeypatch, devices, visible):
    """And those that nobody asked for are hidden, or the first process would take their memory."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    stand_in("gpu", 1)
    outcome = programs.train("--seeds=4", f"--devices={devices}")
    assert {*answers(outcome).values()} == {visible} and len(answers(outcome)) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(machine, "free_memory", lambda: 64 * 2**30)
    assert pool.default_jobs(devices) == (6 if visible == "" else 1)
    assert pool.default_jobs() == 2


def test_workers_of_one_run_refuse_a_grid_unless_each_has_its_part(stand_in, monkeypatch, tmp_path):
    stand_in("process", "seed")
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    for environment in (
        {"TF_CONFIG": json.dumps(task)},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            outcome = programs.train("--seeds=2", f"--logdir={tmp_path / 'logs'}")
            assert outcome.out == "" and outcome.status == 1
            assert outcome.err.count("\n") == 1
            assert "--shard" in outcome.err and "--run_name" in outcome.err
            assert answers(programs.train("--seeds=4", "--shard=1/2")).keys() == {1, 3}
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert answers(programs.train("--seeds=2")).keys() == {0, 1}


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_trials_share_the_cores(stand_in, monkeypatch, jobs):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = sorted(os.sched_getaffinity(0))
    stand_in("cores")
    found = answers(programs.train("--seeds=9", f"--jobs={jobs}")).values()
    shares = [cores[i::jobs] or [cores[i % len(cores)]] for i in range(jobs)]
    assert {*found} <= {*map(str, shares)} and len(found) == 9
    assert sorted({core for share in shares for core in share}) == cores


def test_a_number_of_threads_has_a_process(stand_in, tmp_path):
    """TensorFlow sets its threads up once in a process."""
    stand_in("process", "threads")
    grid_file = tmp_path / "threads.flags"
    grid_file.write_text("--threads=1\n--threads=1 --seed=1\n--threads=2 --seed=2\n")
    outcome = programs.train(f"--grid={grid_file}", "--jobs=1")
    found = [answer.split() for _, answer in sorted(answers(outcome).items())]
    assert [threads for threads, _ in found] == ["1", "1", "2"]
    assert found[0][1] == found[1][1] != found[2][1]


def test_a_process_is_replaced_after_so_many_trials(stand_in, monkeypatch):
    stand_in("process", "seed")
    monkeypatch.setattr(pool, "_TRIALS", 2)
    outcome = programs.train("--seeds=5", "--jobs=1")
    found = [answer.split()[1] for _, answer in sorted(answers(outcome).items())]
    assert found[0] == found[1] != found[2] == found[3] != found[4]


def test_a_trial_for_each_core_as_far_as_memory_goes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert 0 < machine.free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for gibibytes, jobs in ((64, 6), (4, 3), (0, 1)):
        monkeypatch.setattr(machine, "free_memory", lambda free=gibibytes: free * 2**30)
        assert pool.default_jobs() == jobs


def test_trials_that_differ_in_their_seed_follow_each_other_in_one_process(stand_in):
    stand_in("process", "optimizer")
    outcome = programs.train("--optimizer=sgd,adam", "--seeds=2", "--jobs=1")
    assert outcome.status == 1
    order = re.findall(r"seed=(\d): failed: (\w+) (\d+)", outcome.out)
    assert [(o, s) for s, o, _ in order] == [
        ("sgd", "0"),
        ("sgd", "1"),
        ("adam", "0"),
        ("adam", "1"),
    ]
    assert len({process for *_, process in order}) == 1


def test_each_process_begins_with_another_config():
    configs = [Config(optimizer=one, seed=seed) for seed in range(3) for one in ("sgd", "adam")]
    waiting, last, taken = pool._Waiting(configs), [None, None], []
    while waiting:
        for process in range(2):
            last[process] = waiting.take(last[process])
            taken.append(last[process])
    assert {c.optimizer for c in taken[::2]} == {"sgd"}
    assert {c.optimizer for c in taken[1::2]} == {"adam"}
    assert sorted(taken, key=configs.index) == configs


def test_a_worker_that_will_not_start_fails_each_trial_with_its_last_words(stand_in):
    stand_in("fail")
    outcome = programs.train("--seeds=3", "--jobs=2")
    assert outcome.status == 1
    assert [*sorted(answers(outcome))] == [0, 1, 2]
    for answer in answers(outcome).values():
        assert "exit status 5" in answer
        assert "no such library" in answer
    assert outcome.out.count(": failed\n") == 3  # in the notes below the table


def test_a_worker_that_dies_fails_the_trial_that_it_had_and_another_takes_its_place(stand_in):
    stand_in("die")
    outcome = programs.train("--seeds=4", "--jobs=1")
    assert (outcome.status, outcome.err) == (1, "")
    found = answers(outcome)
    assert "signal 9" in found.pop(1)
    assert [*found] == [0, 2, 3]
    assert found[0] != found[2] == found[3]
    assert found[3].startswith("process ")


def test_what_a_library_prints_in_a_worker_loses_no_trial(stand_in):
    stand_in("chatter")
    outcome = programs.train("--seeds=4", "--jobs=1")
    assert outcome.status == 1
    assert [*answers(outcome)] == [0, 1, 2, 3]
    assert answers(outcome)[3].startswith("process ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_nothing_more_begins(stand_in, tmp_path, number):
    stand_in("signal", int(number))
    outcome = programs.train("--seeds=3", "--jobs=1")
    assert (outcome.status, outcome.err) == (128 + number, "")
    assert (tmp_path / "handed on").exists()
    assert "stopping" in outcome.out
    assert answers(outcome) == {}
    notes = " ".join(outcome.out.split())
    for seed in range(3):
        assert f"seed={seed}: not run" in notes


def read_until(file, end):
    """What a terminal is sent; a single read gives what lies there, which need not be all."""
    shown = ""
    while not shown.endswith(end):
        shown += os.read(file, 2**16).decode()
    return shown


def test_a_terminal_gets_a_bar(stand_in):
    stand_in("steps")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    line = ["train", "--seeds=2", "--jobs=1", "--training_steps=25", "--display_step=10"]
    with (
        futures.ThreadPoolExecutor() as threads,
        open(slave, "w") as terminal,
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
        mock.patch.object(sys, "argv", line),
    ):
        reading = threads.submit(read_until, master, "\x04")
        assert main.train() == 1
        print(end="\x04", file=terminal, flush=True)
        shown = reading.result()
    os.close(master)
    parts = re.split("[\r\n]+", shown)
    bars = [part for part in parts if "step/s" in part or "s/step" in part]
    assert any("0 of 2 done:" in bar for bar in bars), bars
    assert any("1 of 2 done:" in bar for bar in bars)
    assert "2 of 2 done: 100%" in bars[-1]
    assert "50/50" in bars[-1]
    assert {0, 1} == {int(seed) for seed in re.findall(r"seed=(\d): failed: no more", shown)}


# ------------------------------------------------------------------ grids that run


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder for --data: five classes of 4 x 3 pixels, so noisy that none learns them all."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    centres = random.integers(80, 176, (5, 4, 3))
    for part, count in (("train", 400), ("t10k", 1000)):
        labels = random.integers(0, 5, count)
        images = np.clip(centres[labels] + random.normal(0, 60, (count, 4, 3)), 0, 255)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


class Grid:
    """A small grid in a folder of its own, run by the program in processes of its own."""

    def __init__(self, cwd, examples):
        self.cwd, self.logdir = cwd, cwd / "logs"
        self.line = [write(cwd, LINES), "--seeds=2", f"--data={examples}", *SMALL]
        self.names = [
            f"{config.run_name}" for config in parse(*self.line)
        ]  # of the run directories, in the grid's order

    def start(self, *more, **options):
        return programs.start(*self.line, *more, cwd=self.cwd, **options)

    def run(self, *more):
        return programs.finish(self.start(*more))

    def results(self):
        """result.json of every trial, in the grid's order."""
        return [programs.result(self.logdir / name) for name in self.names]

    def status(self, name):
        """What a trial's result.json says of it; None while there is none."""
        path = self.logdir / name / "result.json"
        return json.loads(path.read_text())["status"] if path.exists() else None

    def under_way(self, name):
        """Whether a trial has been evaluated and has not come to its end."""
        directory = self.logdir / name
        files = [*directory.glob("*tfevents*")]
        return self.status(name) is None and any(b"test-loss" in f.read_bytes() for f in files)

    def half_way(self):
        """Names of trials under way, once others are finished."""
        if not any(self.status(name) for name in self.names):
            return []
        return [name for name in self.names if self.under_way(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, examples):
    """The grid, never interrupted, one trial at a time."""
    home = Grid(tmp_path_factory.mktemp("whole"), examples)
    home.outcome = home.run("--jobs=1")
    assert home.outcome.status == 0, home.outcome.err
    return home


def processes(cwd):
    """Ids of the live processes that work in a folder (only Linux shows them)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.exists("/proc") else []):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(cwd):
                found.append(int(pid))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.fixture
def other(tmp_path, examples):
    """The same grid elsewhere, before it runs; nothing of it outlives the test."""
    yield Grid(tmp_path, examples)
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def figures(result):
    """What must not depend on how, where and beside what a trial ran."""
    seconds = ("seconds", "startup_seconds")
    return {name: value for name, value in result.items() if name not in seconds}


def accuracies(home):
    """By configuration and seed, the count and the course of the accuracy."""
    return {
        (r["config"]["optimizer"], r["config"]["learning_rate"], r["config"]["seed"]): (
            r["status"],
            r["test_correct"],
            r["test_accuracy"],
            r["evaluations"],
        )
        for r in home.results()
    }


def table(text):
    """The table in what a program printed, without its seconds."""
    lines = text[text.index("#  n_hidden_1") :].splitlines()
    return [re.sub(r" \d+\.\d (?=[a-z1-9])", " ", " ".join(line.split())) for line in lines]


def trace(home, names):
    """What lies in run directories, by path: bytes, and for record and result the time, too."""
    paths = [p for name in names for p in (home.logdir / name).rglob("*") if p.is_file()]
    return {
        str(path.relative_to(home.logdir)): (
            path.read_bytes(),
            path.stat().st_mtime_ns if path.name.startswith(("events", "result")) else None,
        )
        for path in paths
        if path.name != "lock"
    }


def progress(text):
    """(done, all, trial, end) of each line of the progress."""
    found = re.findall(
        r"^(\d+) of (\d+) done(?:, about [\d.]+ min to go)?  (.+?seed=\d+): (.+)$", text, re.M
    )
    return [(int(done), int(count), trial, end) for done, count, trial, end in found]


def report(logdir, *arguments):
    """The report's table."""
    return programs.report(logdir, "--nopage", *arguments)


def test_every_trial_has_its_directory_and_its_result(whole):
    assert sorted(os.listdir(whole.logdir)) == sorted(whole.names)
    for (optimizer, rate, seed), result in zip(TRIALS, whole.results(), strict=True):
        assert (result["status"], result["step"]) == ("completed", STEPS)
        config = result["config"]
        assert (config["optimizer"], config["learning_rate"], config["seed"]) == (
            optimizer,
            rate,
            seed,
        )
    # Else the comparisons below could not see one trial taken for another.
    assert len({result["test_correct"] for result in whole.results()}) == len(TRIALS)
    assert whole.outcome.err == ""


def test_the_table_has_a_row_for_each_config_with_the_figures_of_its_trials(whole):
    lines = whole.outcome.out[whole.outcome.out.index("#  n_hidden_1") :].splitlines()
    assert [line[:2] for line in lines[1:3]] == ["0 ", "1 "]
    assert lines[3] == lines[7] == ""
    for i, (optimizer, rate) in enumerate(CONFIGS):
        of_row = [
            r
            for r, trial in zip(whole.results(), TRIALS, strict=True)
            if trial[:2] == (optimizer, rate)
        ]
        correct = sorted(r["test_correct"] for r in of_row)
        shares = np.array(correct) / 1000
        cells = lines[1 + i].split()
        assert cells[:5] == [str(i), "8", "8", str(rate), optimizer]
        assert (
            lines[1 + i].split("  ")[-3].strip()
            == f"{shares.mean():.4f} ± {shares.std(ddof=1):.4f}"
        )
        assert lines[5 + i].split()[:4] == [str(i), "2", "of", "2"]
        assert f" {correct[0]}..{correct[1]}/1000 " in lines[5 + i]
        assert lines[5 + i].endswith("completed")


def test_the_progress_counts_every_trial(whole):
    lines = progress(whole.outcome.out)
    assert [line[0] for line in lines] == [1, 2, 3, 4]
    for _, count, trial, end in lines:
        assert count == 4
        result = programs.result(whole.logdir / trial)
        assert f"completed, test accuracy {result['test_accuracy']:.4f}" in end
        assert "already" not in end
    assert sorted(line[2] for line in lines) == sorted(whole.names)
    assert "\r" not in whole.outcome.out


@pytest.mark.slow
def test_a_grid_that_is_finished_is_only_shown_again(whole, other):
    shutil.copytree(whole.logdir, other.logdir)
    before = trace(other, other.names)
    outcome = other.run("--jobs=1")
    assert (outcome.status, outcome.err) == (0, "")
    assert trace(other, other.names) == before
    assert sum("already" in line[-1] for line in progress(outcome.out)) == 4
    shown = outcome.out[outcome.out.index("#  n_hidden_1") :]
    assert whole.outcome.out.endswith(shown)


@pytest.mark.slow
def test_shards_and_a_single_run_give_the_figures_of_the_grid(whole, other):
    """Two trials at a time, where `whole` had one: they depend on nothing beside them."""
    started = [other.start(f"--shard={i}/2", "--jobs=1") for i in range(2)]
    shards = [programs.finish(process) for process in started]
    # No grid and no worker: one run in this process, as the grid's last trial.
    optimizer, rate, seed = TRIALS[-1]
    trial = [f"--optimizer={optimizer}", f"--learning_rate={rate}", f"--seed={seed}"]
    single = [*other.line[2:], *trial, f"--logdir={other.cwd / 'single'}"]
    alone = programs.train(*single)
    assert (alone.status, alone.err) == (0, "")
    for i, outcome in enumerate(shards):
        assert (outcome.status, outcome.err) == (0, "")
        assert {line[2] for line in progress(outcome.out)} == {*other.names[i::2]}
    assert [*map(figures, other.results())] == [*map(figures, whole.results())]
    last = programs.result(other.cwd / "single" / other.names[-1])
    assert figures(last) == figures(whole.results()[-1])
    # Of all that lies there, a table as if one call had made it.
    both = [
        json.loads(report(logdir, "--format=json").out) for logdir in (whole.logdir, other.logdir)
    ]
    for one in both:
        for row in one["rows"]:
            del row["seconds"]
    assert both[0] == both[1]


# ------------------------------------------------------------------ what stops them


linux = pytest.mark.skipif(not os.path.exists("/proc/self/cwd"), reason="needs Linux's /proc")


def wait_half_way(home, process):
    """Waits for a moment with some trials finished and others under way."""
    deadline = time.monotonic() + 120
    while not home.half_way():
        assert process.poll() is None, "the grid ended before anything was seen under way"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_goes_on(home, whole):
    """Asserts that a second call finishes what an interrupted one has begun, and nothing twice."""
    finished = [name for name in home.names if home.status(name) == "completed"]
    assert 0 < len(finished) < len(home.names)
    before = trace(home, finished)
    outcome = home.run("--jobs=2")
    assert (outcome.status, outcome.err) == (0, "")
    assert trace(home, finished) == before
    there = {line[2] for line in progress(outcome.out) if "already" in line[-1]}
    assert there == {*finished}
    assert accuracies(home) == accuracies(whole)
    assert table(outcome.out) == table(whole.outcome.out)


@pytest.mark.slow
@linux
def test_a_killed_grid_leaves_no_worker_and_goes_on_later(whole, other):
    with other.start("--jobs=2") as process:
        wait_half_way(other, process)
        workers = [pid for pid in processes(other.cwd) if pid != process.pid]
        process.kill()
    assert len(workers) == 2
    assert process.returncode == -signal.SIGKILL
    programs.wait_for(lambda: not processes(other.cwd), "the workers to end by themselves", 60)
    assert_goes_on(other, whole)


@linux
@pytest.mark.slow
def test_a_worker_does_not_outlive_its_parent_by_a_trial(other):
    with other.start("--training_steps=1000000", "--jobs=1") as process:
        endless = parse(*other.line, "--training_steps=1000000")[0].run_name
        programs.wait_for(lambda: other.under_way(endless), "the first evaluation")
        assert len(processes(other.cwd)) == 2
        process.kill()
    programs.wait_for(lambda: not processes(other.cwd), "the worker to end by itself", 60)
    assert 0 < programs.result(other.logdir / endless)["step"] < 1000000


@linux
@pytest.mark.slow
def test_a_signal_ends_a_grid_with_the_table_so_far(whole, other):
    number = signal.SIGTERM
    process = other.start("--jobs=1")
    wait_half_way(other, process)
    process.send_signal(number)
    outcome = programs.finish(process)
    assert processes(other.cwd) == []
    assert (outcome.status, outcome.err) == (128 + number, "")
    assert "stopping" in outcome.out
    statuses = [other.status(name) for name in other.names]
    assert statuses.count("completed") >= 1
    assert statuses.count(None) >= 1  # never begun, since there was one worker
    # Of each config that has a result the table has a row, and it says how many are complete.
    lines = table(outcome.out)
    rows = {tuple(line.split()[1:5]) for line in lines[1 : lines.index("")]}
    assert rows == {
        ("8", "8", str(trial[1]), trial[0])
        for trial, status in zip(TRIALS, statuses, strict=True)
        if status
    }
    assert sum(f"{name}: not run" in " ".join(lines) for name in other.names) == statuses.count(
        None
    )
    for name, status in zip(other.names, statuses, strict=True):
        if status == "interrupted":
            assert programs.result(other.logdir / name)["step"] < STEPS
    assert_goes_on(other, whole)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_the_workers_start(other, number):
    process = other.start("--jobs=2")
    programs.wait_for(lambda: len(processes(other.cwd)) == 3, "the workers")
    process.send_signal(number)
    outcome = programs.finish(process)
    programs.wait_for(lambda: not processes(other.cwd), "the workers to end", 60)
    if number != signal.SIGKILL:
        assert outcome.status == 128 + number
        assert "#  n_hidden_1" not in outcome.out
    assert [other.status(name) for name in other.names].count("completed") == 0


@linux
@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(other):
    endless = [*other.line, "--training_steps=1000000", "--steps_per_loop=20"]
    process = programs.start(*endless, "--jobs=2", cwd=other.cwd)
    programs.wait_for(lambda: len(processes(other.cwd)) == 3, "the workers")
    workers = [pid for pid in processes(other.cwd) if pid != process.pid]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # as one that is deep in a long loop: it cannot answer
    try:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        outcome = programs.finish(process)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert outcome.status == 130
    programs.wait_for(lambda: not processes(other.cwd), "the workers to end", 60)


@linux
@pytest.mark.slow
def test_a_worker_that_is_killed_and_a_folder_in_the_way_fail_their_trials_alone(whole, other):
    in_the_way = other.logdir / other.names[-1]
    in_the_way.mkdir(parents=True)
    (in_the_way / "thesis.txt").touch()
    process = other.start("--jobs=1")
    while True:
        wait_half_way(other, process)
        (worker,) = (pid for pid in processes(other.cwd) if pid != process.pid)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(0.1)  # a write that it was in the midst of is whole after that
        (victim, *_) = [*other.half_way(), ""]
        if victim:
            break
        os.kill(worker, signal.SIGCONT)  # it was just through with that trial
    os.kill(worker, signal.SIGKILL)
    outcome = programs.finish(process)
    assert (outcome.status, outcome.err) == (1, "")
    ends = {line[2]: line[3] for line in progress(outcome.out)}
    assert ends.keys() == {*other.names}
    assert re.match("failed: .*signal 9", ends.pop(victim))
    assert "thesis.txt" in ends.pop(in_the_way.name)
    assert all(end.startswith("completed") for end in ends.values())
    assert f"{victim}: failed" in " ".join(table(outcome.out))
    unfinished = {name for name in other.names if other.status(name) != "completed"}
    assert unfinished == {victim, in_the_way.name}
    (in_the_way / "thesis.txt").unlink()
    assert_goes_on(other, whole)


# What each of these trials meets.
FAULTS = """\
--optimizer=sgd --learning_rate=0.0005 --seed=0  # a file where its folder should be
--optimizer=sgd --learning_rate=0.0005 --seed=3  # a folder of something else
--optimizer=adam --learning_rate=0.001 --seed=0  # another process that writes there
--optimizer=adam --learning_rate=0.001 --seed=1  # a run of another config
--optimizer=sgd --learning_rate=3e38 --loss=softmax_cross_entropy  # infinite numbers
--optimizer=sgd --learning_rate=0.0005 --seed=2  # nothing in its way
--optimizer=sgd --learning_rate=0.0005 --seed=1  # itself, finished
"""


@pytest.mark.slow
def test_trials_that_cannot_run_do_not_stop_the_others(whole, other):
    other.line = [write(other.cwd, FAULTS), *other.line[2:]]
    a_file, foreign, locked, changed, diverging, good, finished = names = [
        config.run_name for config in parse(*other.line)
    ]
    other.logdir.mkdir()
    (other.logdir / a_file).write_text("not a folder")
    (other.logdir / foreign).mkdir()
    (other.logdir / foreign / "thesis.txt").write_text("years of work")
    (other.logdir / locked).mkdir()
    shutil.copytree(whole.logdir / locked, other.logdir / changed)  # that of another seed
    shutil.copytree(whole.logdir / finished, other.logdir / finished)
    before = trace(other, [foreign, changed, finished])
    with open(other.logdir / locked / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = other.run("--jobs=1")
    assert (outcome.status, outcome.err) == (3, "")
    assert trace(other, [foreign, changed, finished]) == before
    assert (other.logdir / a_file).read_text() == "not a folder"
    assert os.listdir(other.logdir / locked) == ["lock"]

    ends = {line[2]: line[3] for line in progress(outcome.out)}
    assert ends.keys() == {*names}
    for name, words in {
        a_file: ["--logdir"],
        foreign: ["thesis.txt", "--logdir"],
        locked: ["another process"],
        changed: ["seed was 0, is 1", "--overwrite", "--run_name"],
    }.items():
        assert ends[name].startswith("failed: ")
        for word in [f"{other.logdir.name}/{name}", *words]:
            assert word in ends[name]
    assert "optimizer was" not in ends[changed]  # it is the same
    assert ends[diverging].startswith("nonfinite")
    assert programs.result(other.logdir / diverging)["status"] == "nonfinite"
    assert ends[good].startswith("completed") and "already" not in ends[good]
    assert ends[finished].startswith("completed") and "already" in ends[finished]
    # What diverged has a row, and no accuracy that could be averaged in.
    lines = table(outcome.out)
    (row,) = [line for line in lines if "3e+38" in line]
    assert row.split()[1:5] == ["8", "8", "3e+38", "sgd"] and "±" not in row
    assert any(line.split()[1:4] == ["0", "of", "1"] for line in lines if "nonfinite" in line)


# ------------------------------------------------------------------ the report


def test_the_stub_stands_in_tensorflows_place_and_only_workers_load_it(tmp_path, no_tensorflow):
    environment = programs.ENVIRONMENT | {"PYTHONPATH": no_tensorflow}
    done = subprocess.run(
        [*programs.TRAIN, "--seeds=2", "--jobs=1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout.count("exit status 99") == 2


def test_the_report_shows_the_grid_in_four_formats(whole):
    def printed(*arguments):
        outcome = report(whole.logdir, *arguments)
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.out

    means = {  # by optimizer and rate, by hand
        config: np.mean(
            [
                r["test_correct"] / 1000
                for r, trial in zip(whole.results(), TRIALS, strict=True)
                if trial[:2] == config
            ]
        )
        for config in CONFIGS
    }
    text = printed()
    assert printed("--format=text") == text
    rows = json.loads(printed("--format=json"))["rows"]
    assert {(r["config"]["optimizer"], r["config"]["learning_rate"]): r["mean"] for r in rows} == (
        pytest.approx(means)
    )
    read = [*csv.DictReader(io.StringIO(printed("--format=csv")))]
    assert {(r["optimizer"], float(r["learning_rate"])): float(r["mean"]) for r in read} == (
        pytest.approx(means)
    )
    marked = [
        line.strip("|").split("|")
        for line in printed("--format=markdown").splitlines()
        if "|" in line
    ]
    heading, rule, *body = [[cell.strip() for cell in line] for line in marked]
    assert {*rule} == {"---"}
    cells = [dict(zip(heading, line, strict=True)) for line in body]
    assert {
        (c["optimizer"], float(c["learning_rate"])): float(c["accuracy"].split()[0]) for c in cells
    } == pytest.approx(means, abs=6e-5)
    for mean in means.values():
        assert f"{mean:.4f} ± " in text


def test_the_reports_launcher_needs_no_tensorflow_for_the_table(whole, no_tensorflow):
    environment = {"LAB_PYTHON": sys.executable, "PYTHONPATH": no_tensorflow}
    done = subprocess.run(
        [os.path.join(programs.ROOT, "bin", "report"), "--logdir=logs", "--nopage"],
        cwd=whole.cwd,
        env=programs.ENVIRONMENT | environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == report(whole.logdir).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], ["absent", "no such directory"]),
        (["file"], ["file", "no such directory"]),
        ([".", " --format=text"], ["format"]),
        ([".", "--format=html"], ["--format=html", "markdown"]),
        ([".", "--optimizer=sgd"], ["--optimizer"]),
        ([".", "elsewhere"], ["elsewhere", "folder"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_report_cannot_show_ends_in_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    outcome = programs.report(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert re.fullmatch(r"report: .*\n", outcome.err), outcome.err
    for word in words:
        assert word in outcome.err


def test_a_broken_result_is_named_below_the_table(whole, other):
    shutil.copytree(whole.logdir, other.logdir)
    (other.logdir / other.names[0] / "result.json").write_text('{"config": ')
    outcome = report(other.logdir)
    assert outcome.status == 0
    assert f"{other.names[0]}/result.json: not JSON" in " ".join(outcome.out.split())
    runs = [line for line in table(outcome.out) if " of " in line and line.endswith("completed")]
    assert sorted(line.split(" ", 1)[1][:6] for line in runs) == ["1 of 1", "2 of 2"]


# ------------------------------------------------------------------ TensorBoard


@pytest.mark.slow
def test_tensorboards_hparams_page_has_a_row_for_each_trial(whole):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(whole.logdir)]
    wanted = dict(zip(whole.names, whole.results(), strict=True))
    with programs.serving(command, whole.names[-1], STEPS, watched=False) as board:
        programs.wait_for(
            lambda: all(board.has_all(name, STEPS, False) for name in whole.names), "all runs"
        )
        experiment = board.get("data/plugin/hparams/experiment", {"experimentName": ""})
        groups = board.get(
            "data/plugin/hparams/session_groups",
            {
                "experimentName": "",
                "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE"],
                "colParams": [{"metric": {"group": "", "tag": "test-accuracy"}}],
                "startIndex": 0,
                "sliceSize": 100,
            },
        )["sessionGroups"]
    assert [m["name"]["tag"] for m in experiment["metricInfos"]] == ["test-accuracy"]
    shown = {h["name"] for h in experiment["hparamInfos"]}
    assert shown >= {"optimizer", "learning_rate", "n_hidden_1", "n_hidden_2", "seed"}
    assert len(groups) == len(wanted)
    for group in groups:
        (session,) = group["sessions"]
        result = wanted.pop(session["name"])
        assert session["status"] == "STATUS_SUCCESS"
        for name in ("optimizer", "learning_rate", "n_hidden_1", "seed", "training_steps"):
            assert group["hparams"][name] == result["config"][name], name
        (metric,) = group["metricValues"]
        assert metric["trainingStep"] == STEPS
        assert np.float32(metric["value"]) == np.float32(result["test_accuracy"])
    assert wanted == {}


def test_shlex_is_what_a_shell_would_do(tmp_path):
    """A line of a grid file can be pasted behind the program's name."""
    line = "--optimizer='adam' \"--data=a b\" --n_hidden_1=3\\2"
    words = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert parse(write(tmp_path, line)) == parse(*words)
    assert shlex.split(line) == words
