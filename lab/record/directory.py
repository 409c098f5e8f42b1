"""The run directory: config.json from the start, the record's event files, checkpoints, result.json
at the end, and a lock that the process holds which writes there."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import fnmatch
import glob
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lab.errors import LabError
from lab.settings.config import own_fields, placeless, renamed

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"
EVENTS = "events.out.tfevents.*"
_PAGES = ("report", "report.html", "report.json", "view.html")  # of bin/report and bin/view
_OURS = (CONFIG, RESULT, LOCK, "*.tmp", EVENTS, "checkpoints", "plugins", *_PAGES)
# Statuses of a run that came to its end, and the exit status of each.
FINISHED = {"completed": 0, "collapsed": 0, "nonfinite": 3}


def event_files(directory: str) -> list[str]:
    """The paths of a run's event files, in the order in which TensorBoard reads them."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), EVENTS)))


def checkpoint_paths(directory: str) -> dict[int, str]:
    """The folders of a run's checkpoints by step, the oldest first."""
    pattern = os.path.join(glob.escape(directory), "checkpoints", "step-" + "[0-9]" * 9)
    return {int(path[-9:]): path for path in sorted(glob.glob(pattern))}


def write_file(path: str, text: str) -> None:
    """Writes a file so that it is whole or as it was, also after a power cut."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def read_object(path: str) -> dict[str, Any]:
    """The object in a JSON file, {} if there is no such file; LabError if it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise LabError(f"{path} cannot be read: it is not a JSON object")
    return value


def json_value(value: Any) -> Any:
    """A value as strict JSON: dataclasses and named tuples are objects, arrays lists, and
    what is not finite is null."""
    if dataclasses.is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [json_value(one) for one in value]
    return value


class RunDirectory:
    """A run's directory, locked until `close` or the end of the process.

    Args:
      path: of the directory; it is created if it does not exist.
      identity: all that decides what the run gives: plain JSON values by name; with a fingerprint.
      overwrite: delete what an earlier run left here.

    Raises:
      LabError: another process writes here, the directory is not a run's, holds another run, or
        cannot be written.
    """

    def __init__(
        self, path: str, identity: dict[str, Any], fingerprint: str, overwrite: bool = False
    ) -> None:
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
            with contextlib.ExitStack() as held:  # the error, where it is kept, keeps no lock
                self._lock = held.enter_context(open(os.path.join(path, LOCK), "a"))
                self._take(identity | {"fingerprint": fingerprint}, overwrite)
                held.pop_all()
        except OSError as error:
            raise LabError(
                f"{error.filename or path} cannot be written ({error.strerror}): "
                "choose another --logdir"
            ) from error

    def _take(self, config: dict[str, Any], overwrite: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another process is writing to {self.path}: wait for it to end, or choose another "
                "--run_name"
            ) from None
        present = set(os.listdir(self.path)) - {LOCK, f"{CONFIG}.tmp"}
        foreign = present.difference(*(fnmatch.filter(present, own) for own in _OURS))
        earlier: dict[str, Any] = {}
        with contextlib.suppress(LabError):
            earlier = read_object(os.path.join(self.path, CONFIG))
        if foreign or (present and "fingerprint" not in earlier):
            what = (
                f"{min(foreign)}, which does not belong to a run"
                if foreign
                else f"no {CONFIG} of a run"
            )
            raise LabError(
                f"{self.path} holds {what}: move it away, or choose another --logdir or --run_name"
            )
        if overwrite:
            self._clear(earlier)
        elif present:
            self._compare(earlier, config)
        self.write(CONFIG, config)

    def _compare(self, earlier: dict[str, Any], config: dict[str, Any]) -> None:
        if earlier["fingerprint"] is None:
            raise LabError(
                f"{self.path} has been partly deleted: --overwrite deletes the rest, --run_name "
                "renames this run"
            )
        if earlier["fingerprint"] == config["fingerprint"]:
            return
        old, new = _flat(earlier), _flat(config)
        changes = [
            f"{name} was {old.get(name)}, is {new.get(name)}"
            for name in sorted((old.keys() | new.keys()) - {"fingerprint", "forward_order"})
            if old.get(name) != new.get(name)
        ]
        raise LabError(
            f"{self.path} holds another run ({'; '.join(changes) or 'its code differs'}): "
            "--overwrite deletes it, --run_name renames this one"
        )

    def _clear(self, earlier: dict[str, Any]) -> None:
        """Deletes all but the lock: first the result, lest the rest pass for a whole run, and last
        the config, which says from the first moment on that the rest is not whole."""
        if earlier:
            self.write(CONFIG, earlier | {"fingerprint": None})
        names = set(os.listdir(self.path)) - {LOCK}
        for name in sorted(names, key=lambda name: (name == CONFIG, name != RESULT, name)):
            path = os.path.join(self.path, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    def write(self, name: str, value: Any) -> None:
        """Writes a file of strict JSON."""
        text = json.dumps(value, indent=2, allow_nan=False)
        write_file(os.path.join(self.path, name), f"{text}\n")

    def close(self) -> None:
        """Unlocks the directory for other processes."""
        self._lock.close()


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of the inner config, but for those of other models, beside the rest, as JSON has
    them. `data` is their digest, not their place; of files with models and losses, too, the place
    is left out."""
    plain = json.loads(json.dumps(config))
    inner = renamed(plain.pop("config", None))
    return placeless(own_fields(inner)) | plain if isinstance(inner, dict) else plain
