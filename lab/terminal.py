"""What all programs need in a terminal: a quiet start of TensorFlow, a quiet end where the
output pipe is closed, the TensorBoard command."""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from typing import cast


def tensorboard_command(logdir: str) -> str:
    """What to type to see every step's scalars and 500 histograms a tensor: TensorBoard keeps
    fewer unless told, and 0, which is to keep all, makes its pages empty."""
    tool = os.path.join(os.path.dirname(sys.executable), "tensorboard")
    if shutil.which("tensorboard") == tool:
        program = "tensorboard"
    elif os.path.exists(tool):
        program = min(tool, os.path.relpath(tool), key=len)
    else:
        program = f"{sys.executable} -m tensorboard.main"
    samples = "scalars=1000000,histograms=500"
    return f"{program} --samples_per_plugin {samples} --logdir {shlex.quote(logdir)}"


def command(program: str, run: str) -> str:
    """What to type for another program of the lab, "view" or "why", on a run."""
    launcher = os.path.join(os.path.dirname(os.path.dirname(__file__)), "bin", program)
    name = f"everystep-{program}"
    if os.path.exists(launcher):
        name = min(launcher, os.path.relpath(launcher), key=len)
    return f"{name} {shlex.quote(run)}"


def fail(program: str, error: Exception | str, status: int) -> int:
    """Prints why a program failed; returns its exit status."""
    print(f"{program}: {error}", file=sys.stderr)
    return status


def program(main: Callable[[], int]) -> Callable[[], int]:
    """Ends a program silently if its standard output is a closed pipe, as `| head` leaves it,
    with the status that a shell gives such programs."""

    @functools.wraps(main)
    def whole() -> int:
        try:
            try:
                return main()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer is written once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return whole


def load_tensorflow() -> None:
    """The first import of TensorFlow in a program: without Keras. TensorFlow imports Keras's
    optimizers by itself, and the lab does not need them; that takes a quarter of the time, and
    80 MB. A model can still import Keras.
    """
    unwanted, modules = "keras.src.optimizers", cast(dict[str, object], sys.modules)
    if unwanted not in modules:
        modules[unwanted] = None  # TensorFlow carries on if it cannot import it
        try:
            importlib.import_module("tensorflow")
        finally:
            del modules[unwanted]


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Among the finders of sys.meta_path, has TensorFlow load without its notices."""

    _looking = False  # for the spec, among the other finders

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "tensorflow" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec and spec.loader:
            spec.loader.exec_module = quiet_stderr()(spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps back what native code prints while TensorFlow is loaded: notices about its build that
    no setting turns off. They are shown if loading fails, or where TF_CPP_MIN_LOG_LEVEL is set to
    less than 3.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        yield
        return
    try:
        stderr = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    if sys.stderr:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
