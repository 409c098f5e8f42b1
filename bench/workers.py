"""The processes of the contestants, one of which runs at a time, and their environments."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
ENVIRONMENTS = FOLDER / ".environments"
OURS = "everystep"


class Failed(Exception):
    """Why a contestant is not in the table."""


def say(text: str) -> None:
    """A line for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def python(name: str) -> str:
    """The Python of an environment, which is made on first use: bench/requirements/NAME.txt.

    Raises:
      Failed: it cannot be made.
    """
    if name == OURS:
        return sys.executable
    requirements = FOLDER / "requirements" / f"{name}.txt"
    folder = ENVIRONMENTS / name
    ready, log = folder / "ready", ENVIRONMENTS / f"{name}.log"
    if ready.exists() and ready.read_text() == requirements.read_text():
        return str(folder / "bin" / "python")
    say(f"first use: installing {name} into {folder} (some minutes, this once)")
    shutil.rmtree(folder, ignore_errors=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    base = os.path.realpath(sys.executable)
    pip = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input"]
    pip += ["--progress-bar=off", "--disable-pip-version-check", "-r", str(requirements)]
    with log.open("w") as file:
        for command in ([base, "-I", "-m", "venv", str(folder)], pip):
            if subprocess.call(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file):
                lines = [line for line in log.read_text().splitlines() if line.strip()]
                errors = [line for line in lines if line.startswith("ERROR")] or lines or ["?"]
                raise Failed(f"cannot be installed: {errors[-1][:200]}")
    shutil.copyfile(requirements, ready)
    return str(folder / "bin" / "python")


def environment(name: str, gpu: bool) -> dict[str, str]:
    """The variables of a process: those of the user, without this program's own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    kept |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    kept["TORCHINDUCTOR_CACHE_DIR"] = str(ENVIRONMENTS / "inductor")
    if name == OURS:
        kept["PYTHONPATH"] = str(ROOT)
    if gpu:  # several processes share it
        kept |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    else:
        kept |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    return kept


class Worker:
    """A process of worker.py. It stands still, with all its threads, but while it is asked.

    Raises:
      Failed (also `ask`): it cannot do what it is asked; the reason in a line.
    """

    def __init__(self, env: str, module: str, data: str, folder: str, gpu: bool = False) -> None:
        os.makedirs(folder)
        self._log, self._rest = pathlib.Path(folder, "log"), b""
        spec = json.dumps({"module": module, "data": data, "folder": folder})
        command = [python(env), str(FOLDER / "worker.py"), spec]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment(env, gpu) | {"WANDB_CONFIG_DIR": folder, "WANDB_CACHE_DIR": folder},
                start_new_session=True,  # a group of its own, to be stopped as one
            )
        try:
            self._answer(120)
        except BaseException:
            self.close()
            raise

    def ask(self, timeout: float = 120, **request: Any) -> dict[str, Any]:
        """What it answers, within `timeout` seconds."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer says how
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                raise Failed(f"no answer within {timeout:.0f} seconds")
            part = os.read(pipe, 1 << 16)
            if not part:
                status = self._process.wait()
                lines = self._log.read_text(errors="replace").strip().splitlines() or ["no word"]
                raise Failed(f"ended with status {status}: {lines[-1][:200]}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        self._signal(signal.SIGSTOP)
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
