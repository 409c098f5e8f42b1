"""What is the same bits, and what is equal within rounding: the table "What is exact" of BUILD.md.

The sizes are the recipe's: smaller products are not cut for threads.
"""

import hashlib
import multiprocessing
import os
import signal
import sys

import forks
import numpy as np
import programs
import pytest
from forks import RUN, STEPS
from programs import ENVIRONMENT

import lab
from lab import machine
from lab.processes import stop

pytestmark = pytest.mark.numbers

RECIPE = ["--optimizer=rmsprop", "--training_steps=40", "--display_step=20", "--steps_per_loop=20"]
# An older kind of CPU each, as far as a program can be told to take this one for it. On one without
# AVX2 TensorFlow does not use oneDNN's kernels.
AVX2 = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SSE = {
    "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


@pytest.fixture(scope="module", params=["cpu:1", "cpu:2"])
def recipe(request, tmp_path_factory, program):
    """Runs the recipe on MNIST, XLA limited to AVX2: there the cut shows in the last bits."""
    folder = tmp_path_factory.mktemp("recipe")
    limit = {"XLA_FLAGS": AVX2["XLA_FLAGS"]}

    def run(name, *flags, environment=(), **options):
        where = [f"--devices={request.param}", f"--logdir={folder / name}", "--run_name=run"]
        outcome = forks.train(
            *RECIPE, *where, *flags, environment=limit | dict(environment), **options
        )
        assert (outcome.status, outcome.err) == (0, ""), outcome
        return folder / name / "run"

    run.environment, run.devices = limit, request.param
    run.whole = run("whole")
    return run


@pytest.mark.slow
def test_threads_and_cores_of_the_machine_change_no_bit(recipe):
    """As a trial of a grid has them, and fewer."""
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    core = [min(os.sched_getaffinity(0))]
    forks.assert_same_bits(recipe("one", environment=threads, cores=core), recipe.whole)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cpu:1"], indirect=True)
def test_a_grid_changes_no_bit(recipe, tmp_path):
    """A trial on its share of the cores, beside others; with the programs of an earlier one."""
    done = programs.finish(
        programs.start(
            *(
                *RECIPE,
                f"--devices={recipe.devices}",
                "--seeds=2,1,0",
                "--jobs=2",
                f"--logdir={tmp_path}",
            ),
            cwd=tmp_path,
            env=ENVIRONMENT | recipe.environment,
        )
    )
    assert (done.status, done.err) == (0, "")
    run = next(tmp_path.glob("*seed=0"))
    for step, path in forks.checkpoints(recipe.whole).items():
        assert forks.tensors(forks.checkpoints(run)[step]) == forks.tensors(path), step


@pytest.mark.slow
def test_the_number_of_threads_belongs_to_the_run(recipe):
    """It is in the fingerprint and the result; what it changes is rounding."""
    other = recipe("threads", "--threads=1")
    one, two = forks.result(other), forks.result(recipe.whole)
    assert (one["config"]["threads"], two["config"]["threads"]) == (1, 2)
    assert one["fingerprint"] != two["fingerprint"]
    assert_equal_within_rounding(other, recipe.whole)


def test_a_process_that_has_begun_keeps_its_threads():
    assert "TensorFlow is already running in this process" in programs.train("--threads=3").err


def assert_equal_within_rounding(run, wanted, atol=2e-3):
    """The losses, sums over 256 examples of about 2 nats, of all steps."""
    (steps, found), (_, expected) = (lab.open_run(one).scalar("loss") for one in (run, wanted))
    assert len(steps) == 40
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cpu:1"], indirect=True)
@pytest.mark.parametrize("kind", [AVX2, SSE], ids=["AVX2", "SSE"])
def test_another_kind_of_cpu_is_equal_within_rounding(tmp_path, recipe, kind):
    done = programs.finish(
        programs.start(
            *(*RECIPE, f"--logdir={tmp_path}", "--run_name=run", "--watch="),
            cwd=tmp_path,
            env=ENVIRONMENT | kind,
        )
    )
    assert (done.status, done.err) == (0, "")
    assert_equal_within_rounding(tmp_path / "run", recipe.whole)
    ((first, cpu),) = (entry.values() for entry in forks.result(tmp_path / "run")["cpus"])
    assert first == 1 and f"XLA limited to {kind['XLA_FLAGS'].partition('=')[2]}" in cpu


@pytest.mark.slow
def test_a_run_that_goes_on_on_another_kind_of_cpu_says_so(program, whole, killed_at_24):
    other = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX"}
    outcome = program.train(killed_at_24, environment=other)
    assert (outcome.status, outcome.err) == (0, "")
    here, there = machine.cpu(), machine.cpu(os.environ | other)
    (line,) = [line for line in outcome.out.splitlines() if "different CPU" in line]
    assert here in line and there in line
    result, wanted = forks.result(killed_at_24), forks.result(whole)
    assert result["cpus"] == [{"first_step": 1, "cpu": here}, {"first_step": 25, "cpu": there}]
    assert result["fingerprint"] == wanted["fingerprint"]
    (steps, loss), (_, expected) = (
        lab.open_run(run).scalar("loss") for run in (killed_at_24, whole)
    )
    np.testing.assert_array_equal(steps, range(1, STEPS + 1))
    np.testing.assert_array_equal(loss[:24], expected[:24])
    np.testing.assert_allclose(loss[24:], expected[24:], rtol=1e-4)


# ------------------------------------------------------------------ the machine


def test_what_a_cpu_is_told_belongs_to_its_kind():
    plain = machine.cpu({})
    assert machine.cpu(AVX2) == f"{plain}, XLA limited to AVX2, oneDNN limited to AVX2"
    limited = "XLA limited to SSE4_2, oneDNN limited to SSE41, without oneDNN"
    assert machine.cpu(SSE) == f"{plain}, {limited}"
    assert machine.cpu({"XLA_FLAGS": "--xla_dump_to=x"}) == plain
    assert plain and "\n" not in plain


@pytest.mark.parametrize(
    ("flags", "given", "wanted", "told"),
    [
        ("fma avx2", {}, "1", ", AVX2, with oneDNN"),
        ("fma avx2", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "0", ", AVX2, without oneDNN"),
        ("avx2 avx512f avx512_vnni", {}, "1", ", AVX-512"),  # where TensorFlow takes it anyway
        ("avx", {}, None, ", AVX"),
    ],
)
def test_onednn_is_used_on_every_cpu_with_avx2(monkeypatch, flags, given, wanted, told):
    monkeypatch.setattr(machine, "_read", lambda _: f"model name\t: X\nflags\t\t: {flags}\n\n")
    monkeypatch.setattr(os, "environ", dict(given))
    machine.enable_onednn()  # too late: TensorFlow is loaded
    assert os.environ == given
    monkeypatch.delitem(sys.modules, "tensorflow")
    machine.enable_onednn()
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == wanted
    assert machine.cpu(os.environ) == f"X{told}"


@pytest.mark.parametrize("cores", [6, pytest.param(2, marks=pytest.mark.slow)])
def test_idle_cores_are_told(tmp_path, monkeypatch, idx_folder, cores):
    monkeypatch.setattr(machine, "cores", lambda: list(range(cores)))
    outcome = programs.train(
        *("--training_steps=2", "--batch_size=8", f"--data={idx_folder}", "--watch="),
        *("--xla=off", f"--logdir={tmp_path}"),
    )
    assert outcome.status == 0, outcome.err
    assert ("--threads=6" in outcome.out) == (cores == 6)


def test_a_batch_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = programs.train("--batch_size=1000000000")
    forks.assert_one_line(outcome, 1, "--batch_size=1000000000", "GiB", "at most")
    fit = int(outcome.err.split("at most ")[1].split(" ")[0].replace(",", ""))
    assert 10_000 < fit < 1_000_000_000
    outcome = programs.train("--n_hidden_1=1000000000")
    forks.assert_one_line(outcome, 1, "784-1000000000-256-10", "smaller layers")
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------ signals


def one_long_operation(connection):
    """The interpreter is inside of it, and runs no handler."""
    stop.PATIENCE = 0.1
    with stop.Stop("last words"):
        os.dup2(connection.fileno(), sys.stderr.fileno())
        connection.send_bytes(b"begun")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def test_a_signal_in_the_midst_of_a_step():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=one_long_operation, args=(there,), daemon=True
    )
    process.start()
    there.close()
    assert here.recv_bytes() == b"begun"
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert os.read(here.fileno(), 100) == b"last words\n"


@pytest.mark.parametrize(
    ("where", "limit", "value", "longest"),
    [
        # Steps that take long are done a few at a time.
        pytest.param("periodic", "LOOP_MILLISECONDS", 0, 1, marks=pytest.mark.slow),
        pytest.param("state", "_INDICES", 32, 2, marks=pytest.mark.slow),  # two batches of 16
    ],
)
def test_a_loop_is_no_longer_than_it_may(program, monkeypatch, where, limit, value, longest):
    """That changes no bit."""
    from lab.step import loop as step

    lengths = []
    run = step.TrainLoop.run

    def noted(self, indices, *rest):
        lengths.append(len(indices))
        return run(self, indices, *rest)

    flags, whole, directory = [*RUN, "--watch=", "--xla=off"], program.new(), program.new()
    assert program.here(whole, *flags).status == 0
    monkeypatch.setattr(step.TrainLoop, "run", noted)
    monkeypatch.setattr(f"lab.training.{where}.{limit}", value)
    assert program.here(directory, *flags).status == 0
    assert max(lengths) == longest and sum(lengths) == STEPS
    assert forks.tensors(forks.checkpoints(directory)[STEPS]) == forks.tensors(
        forks.checkpoints(whole)[STEPS]
    )
