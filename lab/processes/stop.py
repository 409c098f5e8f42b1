"""Ctrl-C and SIGTERM end a program, or a run of lab.train, at the next safe point; a second one at
once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

PATIENCE = 10.0  # seconds from the signal to the end, if there is no good moment before


class Stop:
    """As a context: notes SIGINT and SIGTERM in `signal`, which is 0 until one comes.

    Python runs a signal's handler only between two of its own operations, and one step of
    TensorFlow's may take minutes. So a thread watches for signals, too, and ends the process where
    `check` has not been called in time.

    Args:
      last_words: for standard error, if the process is ended in the middle of something; empty:
        it is given all the time that it takes.
      lives_on: whether a second Ctrl-C raises KeyboardInterrupt, as in a notebook, whose process
        has to go on.
    """

    def __init__(self, last_words: str = "", lives_on: bool = False) -> None:
        self.signal = 0
        self._last_words, self._lives_on = last_words, lives_on
        self._noticed = threading.Event()

    @property
    def status(self) -> int:
        """The exit status that shells expect of a program that ended on this signal."""
        return 128 + self.signal

    def check(self) -> int:
        """The signal that has come, or 0. A program that has asked is given all the time that it
        takes to end."""
        if self.signal:
            self._noticed.set()
        return self.signal

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        if self._last_words:
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._noticed.set()
        if self._last_words:
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._write)  # ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal and self._lives_on and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def _watch(self, read: int) -> None:
        while caught := os.read(read, 1):  # the number of each signal that comes
            number = caught[0]
            if number in self._before and not self._noticed.wait(PATIENCE):
                print(self._last_words, file=sys.stderr, flush=True)
                os._exit(128 + number)
        os.close(read)
