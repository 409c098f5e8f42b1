"""The processes of the contestants, one of which runs at a time, and their environments."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
ENVIRONMENTS = FOLDER / ".environments"


class Failed(Exception):
    """Why a contestant is not in the table."""


def log(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@functools.cache
def _install(name: str) -> str:
    """Makes an environment from bench/requirements/NAME.txt; why it cannot be made, or nothing."""
    requirements = FOLDER / "requirements" / f"{name}.txt"
    folder = ENVIRONMENTS / name
    program, ready, output = folder / "bin" / "python", folder / "ready", folder / "log"
    if ready.exists() and ready.read_text() == requirements.read_text():
        return ""
    log(f"first use: installing {name} into {folder} (some minutes, this once)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = os.path.realpath(sys.executable)
    pip = [str(program), "-I", "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    pip += ["--disable-pip-version-check", "-r", str(requirements)]
    with output.open("w") as file:
        for command in ([base, "-I", "-m", "venv", str(folder)], pip):
            if subprocess.call(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file):
                lines = [line for line in output.read_text().splitlines() if line.strip()]
                errors = [line for line in lines if line.startswith("ERROR")] or lines or ["?"]
                return f"cannot be installed: {errors[-1][:200]}"
    shutil.copyfile(requirements, ready)
    return ""


def environment(name: str, gpu: bool = False) -> dict[str, str]:
    """The variables of a process: those of the user, without this program's own; without GPUs, or
    with the first one, of which it takes no more memory than it needs."""
    inductor = "-".join(filter(None, ["inductor", os.environ.get("ATEN_CPU_CAPABILITY")]))
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return kept | {
        "BENCH_DEVICES": "gpu:1" if gpu else "cpu:1",
        "CUDA_VISIBLE_DEVICES": "0" if gpu else "-1",
        "JAX_PLATFORMS": "cuda" if gpu else "cpu",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TORCHINDUCTOR_CACHE_DIR": str(ENVIRONMENTS / inductor),
        **({} if name else {"PYTHONPATH": str(ROOT)}),
    }


def run(*command: str | pathlib.Path) -> tuple[float, float]:
    """Seconds, and the peak memory in MB, of a program in the environment of this one.

    Raises:
      Failed: it ends with another status than 0.
    """
    begun = time.monotonic()
    own = environment("") | {"LAB_PYTHON": sys.executable}
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        subprocess.Popen(command, env=own, stdout=output, stderr=output) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begun
        if process.returncode:
            output.seek(0)
            last = (output.read().splitlines() or ["no output"])[-1]
            name, status = pathlib.Path(command[0]).name, process.returncode
            raise Failed(f"{name} ended with status {status}: {last}")
    return seconds, usage.ru_maxrss / 1024


class Worker:
    """A process of worker.py. It is stopped, with all its threads, except during a request.

    Its environment is `name`, or that of the Python which BENCH_PYTHON names; without a name the
    one that this program runs in. It makes its folder in `scratch`, where data.npz is.

    Raises:
      Failed (also `ask`): It cannot do what it is asked; the reason in one line.
    """

    def __init__(self, name: str, module: str, scratch: str, gpu: bool = False) -> None:
        python = os.environ.get("BENCH_PYTHON") if name else sys.executable
        if not python:
            python = str(ENVIRONMENTS / name / "bin" / "python")
            if reason := _install(name):
                raise Failed(reason)
        folder = tempfile.mkdtemp(dir=scratch)
        self._log = pathlib.Path(folder, "log")
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [python, str(FOLDER / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=folder,
                env=environment(name, gpu)
                | {"WANDB_CONFIG_DIR": folder, "WANDB_CACHE_DIR": folder},
                start_new_session=True,  # a group of its own, to be stopped as one
            )
        try:
            self.ask(do="start", module=module)
        except BaseException:
            self.close()
            raise

    def ask(self, timeout: float = 600, **request: Any) -> dict[str, Any]:
        """The answer to a request, within `timeout` seconds."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):  # it has ended: the answer says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise Failed(f"no answer within {timeout:.0f} seconds")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Failed(f"ended with status {status}: {lines[-1][:200]}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Ends it, and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.communicate()
