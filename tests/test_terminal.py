"""What programs and scripts have in common: what they do not say, and where they find modules."""

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


@pytest.fixture
def theirs(tmp_path):
    """A folder of the user's with a module, a script that imports it, and another `lab`."""
    (tmp_path / "mine.py").write_text("print('found')\n")
    (tmp_path / "script.py").write_text("import mine\n")
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("raise SystemExit('another lab')\n")
    return tmp_path


def launched(name, *arguments, cwd, **options):
    """A launcher of bin/, run in a folder with the Python of the tests."""
    command = [os.path.join(programs.ROOT, "bin", name), *arguments]
    environment = programs.ENVIRONMENT | {"LAB_PYTHON": sys.executable}
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment, **pipes | options)


@pytest.mark.parametrize(
    "arguments", [["-c", "import mine"], ["-m", "mine"], ["-"], [], ["script.py"]], ids=str
)
def test_bin_python_finds_the_modules_of_the_folder_as_python_does(theirs, arguments):
    done = launched("python", *arguments, cwd=theirs, input="import mine\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "found\n", "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="it has no safe path")
def test_the_labs_programs_are_those_of_this_checkout(theirs):
    """And what bin/launch starts is as if it had not been started by it."""
    for name in ("report", "launch"):
        done = launched(name, "--help", cwd=theirs)
        assert done.returncode == 0 and f"bin/{name}" in done.stdout
    script = [os.path.join(programs.ROOT, "bin", "python"), "script.py"]
    done = launched("launch", "--workers=1", "--", *script, cwd=theirs)
    assert (done.returncode, done.stdout) == (0, "[worker 0] found\n")
