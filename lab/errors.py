"""The exception that ends a program with one line instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator

# Folders of code that is not the user's: the standard library, packages, the lab.
_NOT_OF_USER = (
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")},
    *(os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen "),
)


class LabError(Exception):
    """An error that the user can fix; the message says what is wrong and how to fix it."""


@contextlib.contextmanager
def blamed(what: str = "") -> Iterator[None]:
    """Turns what a user's code raises into one line: what failed, the error, and where in their
    files it arose; the place comes first if `what` is empty."""
    try:
        yield
    except LabError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(f.filename, f.lineno) for f in frames if not f.filename.startswith(_NOT_OF_USER)]
        text = str(error)
        if isinstance(error, SyntaxError) and error.filename:  # of a file that theirs imports
            places, text = [(str(error.filename), error.lineno)], error.msg
        text = " ".join(re.sub(r"\x1b\[\d*m", "", text).split())
        text = f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"
        place = "{}, line {}".format(*places[-1]) if places else ""
        if what and place:
            raise LabError(f"{what}: {text} ({place})") from error
        raise LabError(": ".join(filter(None, (what, place, text)))) from error
