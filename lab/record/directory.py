"""The run directory: whose it is, and what may be done with what lies in it.

config.json     what was asked for, from the start
events.*        the record, for TensorBoard
result.json     what came of it, at the end
lock            held by the process that writes here
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import json
import os
import shutil
from typing import Any

from lab.errors import LabError

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"
EVENTS = "events.out.tfevents.*"
_REPORT = ("report", "report.html", "report.json")  # of bin/report on this one run
_OURS = (CONFIG, RESULT, LOCK, "*.tmp", EVENTS, "checkpoints", "plugins", *_REPORT)


def event_files(directory: str) -> list[str]:
    """The paths of a run's event files, in the order in which TensorBoard reads them."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), EVENTS)))


class RunDirectory:
    """One trial's directory, locked from here on until `close` or the end of the process.

    Args:
      path: of the directory; it is made if it is not there.
      identity: all that decides what the run gives: plain JSON values by name.
      fingerprint: of the identity.
      overwrite: delete what an earlier run left here.

    Attributes:
      path: of the directory.

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
            self._lock = open(os.path.join(path, LOCK), "a")  # noqa: SIM115
            self._take(identity, fingerprint, overwrite)
        except OSError as error:
            raise LabError(
                f"{error.filename or path} cannot be written ({error.strerror}): "
                "choose another --logdir"
            ) from error

    def _take(self, identity: dict[str, Any], fingerprint: str, overwrite: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another process is writing to {self.path}: wait for its end, or choose another "
                "--run_name"
            ) from None
        present = set(os.listdir(self.path)) - {LOCK, f"{CONFIG}.tmp"}
        foreign = {name for name in present if not any(fnmatch.fnmatch(name, own) for own in _OURS)}
        earlier = _read(os.path.join(self.path, CONFIG))
        if foreign or (present and "fingerprint" not in earlier):
            what = f"{min(foreign)}, which is no run's" if foreign else f"no {CONFIG} of a run"
            raise LabError(
                f"{self.path} holds {what}: move that away, or choose another --logdir or "
                "--run_name"
            )
        if overwrite:
            self._clear(earlier)
            present = set()
        if present:
            self._compare(earlier, identity, fingerprint)
        self.write(CONFIG, identity | {"fingerprint": fingerprint})

    def _compare(self, earlier: dict[str, Any], identity: dict[str, Any], fingerprint: str) -> None:
        if earlier["fingerprint"] is None:
            raise LabError(
                f"{self.path} has been deleted in part: --overwrite deletes the rest, --run_name "
                "gives this run another name"
            )
        if earlier["fingerprint"] == fingerprint:
            return
        old, new = _flat(earlier), _flat(identity)
        changes = [
            f"{name} was {old.get(name)}, is {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in ("fingerprint", "data_dir")
        ]
        raise LabError(
            f"{self.path} holds another run ({'; '.join(changes) or 'its code differs'}): "
            "--overwrite deletes it, --run_name gives this one another name"
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
        """Writes strict JSON so that the file is whole or not there, also after a power cut."""
        path = os.path.join(self.path, name)
        with open(f"{path}.tmp", "w") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)

    def close(self) -> None:
        """Lets other processes write here."""
        self._lock.close()


# Statuses of a run that came to its end, and the exit status of each.
FINISHED = {"completed": 0, "collapsed": 0, "nonfinite": 3}


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts as one; tuples and lists alike."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flat(entry)
        else:
            flat[name] = list(entry) if isinstance(entry, tuple) else entry
    return flat
