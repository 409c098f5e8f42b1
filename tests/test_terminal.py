"""What all programs and scripts have in common on a terminal: what they do not say."""

import os
import signal
import subprocess
import sys

import programs
import pytest

MODULES = (
    *("lab.training.main", "lab.report.main", "lab.viewer.main", "lab.diagnosis.main"),
    "lab.processes.launch",
)


def ended(*command):
    """The exit status and standard error of a program whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, env=programs.ENVIRONMENT, timeout=300
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("module", MODULES)
def test_help_ends_quietly_where_nobody_reads_it(module):
    status, said = ended(sys.executable, "-m", module, "--help")
    assert status in (0, 128 + signal.SIGPIPE) and said == ""  # argparse does not tell


@pytest.mark.slow
def test_a_run_that_nobody_listens_to_ends_quietly_and_is_resumed(tmp_path):
    flags = ("--training_steps=4", f"--logdir={tmp_path}", "--run_name=run", "--n_hidden_1=8")
    assert ended(*programs.TRAIN, *flags) == (128 + signal.SIGPIPE, "")
    assert programs.train(*flags).status == 0
    assert programs.result(tmp_path / "run")["step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "3"])
def test_a_script_that_imports_lab_hears_nothing_of_tensorflow(level):
    script = "import importlib.util, lab; importlib.util.find_spec('tensorflow'); "
    script += "import tensorflow as tf; print(tf.range(3) + 1)"
    environment = programs.ENVIRONMENT | ({} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level})
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "") and "[1 2 3]" in done.stdout
