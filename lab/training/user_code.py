"""Loading user files: the models, losses and data that flags refer to by FILE.py:NAME."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
from types import ModuleType
from typing import Any, NamedTuple

from lab.errors import LabError, blamed
from lab.settings.config import READY_MADE
from lab.settings.source import Source, digest_of


class UserCode(NamedTuple):
    """What a reference refers to.

    Attributes:
      value: the class, function or value.
      digest: sha256 over the file and all that it imports from its own folder, wherever that is.
    """

    value: Any
    digest: str


class _Loaded(NamedTuple):
    """A file that was run; `files`: the digests of it and its neighbours by path."""

    module: ModuleType
    files: dict[str, str]


_loaded: dict[str, _Loaded] = {}  # by path
_neighbours: set[str] = set()  # names in sys.modules
_folders: list[str] = []  # at the end of sys.path, for imports in functions: the newest first


def load(found: Source) -> UserCode:
    """Imports the file of a reference, and what that imports.

    The file can import its neighbours, the modules and packages in its folder. It is run once, and
    again where one of them has changed since; files in different folders can have neighbours of the
    same name.

    Raises:
      LabError: it raises an error, or does not define the name after all.
    """
    if found.text in READY_MADE:
        module = importlib.import_module(f"lab.models.{found.text}")
        loaded = _Loaded(module, {found.path: found.digest})
    else:
        known = _loaded.get(found.path)
        if not known or any(_digest(path) != digest for path, digest in known.files.items()):
            _loaded[found.path] = known = _run(found)
        loaded = known
    if not hasattr(loaded.module, found.name):
        raise LabError(f"{found.path} does not define {found.name} when it is imported")
    folder = os.path.dirname(found.path)
    return UserCode(getattr(loaded.module, found.name), digest_of(loaded.files, folder))


def _run(found: Source) -> _Loaded:
    """Runs a file as a module of its own, with its folder first on the path."""
    folder = os.path.dirname(found.path)
    for name in _neighbours:
        sys.modules.pop(name, None)
    _neighbours.clear()
    importlib.invalidate_caches()
    linecache.checkcache()  # TensorFlow and tracebacks look up source lines
    stem = os.path.splitext(os.path.basename(found.path))[0]
    name = f"{stem}_{hashlib.sha256(os.fsencode(found.path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, found.path)
    assert spec
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    before, written = {*sys.modules}, sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # it would hide a change within the same second
    try:
        with blamed():
            with open(found.path, "rb") as file:
                content = file.read()
            exec(compile(content, found.path, "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        sys.dont_write_bytecode = written
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
        files = _brought(folder, before)
    if folder not in sys.path or folder in _folders:
        _folders[:] = [folder, *(one for one in _folders if one != folder)]
        sys.path[:] = [one for one in sys.path if one not in _folders] + _folders
    own = {found.path: hashlib.sha256(content).hexdigest()}
    return _Loaded(module, own | {path: _digest(path) for path in files})


def _brought(folder: str, before: set[str]) -> list[str]:
    """The files of modules that came since `before` from a folder, other than the lab itself."""
    files = []
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        path = getattr(module, "__file__", None) or ""
        place = os.path.join(folder, top)
        if name in before or top == "lab" or not path.startswith((f"{place}.", f"{place}{os.sep}")):
            continue
        _neighbours.add(name)
        files.append(path)
    return files


def _digest(path: str) -> str:
    """sha256 of a file; "" if it is gone."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
