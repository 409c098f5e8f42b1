"""Ctrl-C and SIGTERM end a program at the next good moment; a second one ends it at once."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Stop:
    """As a context: notes SIGINT and SIGTERM in `signal`, which is 0 until one comes."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def status(self) -> int:
        """The exit status that shells expect of a program that ended on this signal."""
        return 128 + self.signal

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
