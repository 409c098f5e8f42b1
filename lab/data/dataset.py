"""Training and test examples, checked, with a digest."""

from __future__ import annotations

import hashlib
import inspect
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lab.data.idx_files import FILES, parse, read_file
from lab.errors import LabError, blamed

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mnist")
_PIECE = 2**26  # bytes that are read at a time
# What reading a damaged .npz raises.
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)

Batch = tuple[np.ndarray, np.ndarray]


class Data:
    """Training and test examples: arrays, or a function from the step to its batch.

    Args:
      x, y: training examples, of any dtype and rank, as many y as x; the first axis counts the
        examples. Lists become float32 or int32. A large np.memmap stays on disk.
        Without `y`, the target is `x`.
      x_test, y_test: test examples in the same form; without them there is no evaluation.
      batch: in place of x and y: step (from 1) -> (x, y) of that step. It must be pure: a run that
        is resumed asks for the same step again.
      test: in place of x_test and y_test: the pair (x_test, y_test).
      prepare: maps a batch of x to the model's input; TensorFlow operations, which run on the
        device. By default uint8 becomes float32 / 255, and everything else is unchanged.
      name: for messages and the run's name.
      image_shape: (rows, columns), where x are flattened images.
      digest: of the contents, if already known; it holds while x, y, x_test and y_test are the
        arrays given here.

    Raises:
      LabError: the arrays do not fit together.
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        *,
        batch: Callable[[int], tuple[Any, Any]] | None = None,
        test: tuple[Any, Any] | None = None,
        prepare: Callable[[Any], Any] | None = None,
        name: str = "data",
        image_shape: tuple[int, int] | None = None,
        digest: str = "",
    ) -> None:
        if (x is None) == (batch is None):
            raise LabError("data: give either x (and y) or batch, a function from a step to (x, y)")
        if test is not None:
            if not isinstance(test, (tuple, list)) or len(test) != 2:
                raise LabError("data: test must be (x, y)")
            x_test, y_test = test
        if (x_test is None) > (y_test is None) or (
            x_test is not None and (y is None and not batch) != (y_test is None)
        ):
            raise LabError(f"{name}: x_test and y_test must be given together, as x and y are")
        self.name, self.prepare = name, prepare
        self.image_shape: Any = image_shape
        self._function = batch
        self.x, self.y = self.batch(1) if batch else _pair(name, "training", x, y)
        self.x_test: Any = None
        self.y_test: Any = None
        if x_test is not None:
            self.x_test, self.y_test = _pair(name, "test", x_test, y_test)
            for what, one, other in (("x", self.x, self.x_test), ("y", self.y, self.y_test)):
                if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                    raise LabError(
                        f"{name}: training {what} are {_form(one)}, test {what} {_form(other)}: "
                        "they must have the same shape and dtype"
                    )
        self._known("", digest)

    def _known(self, source: str, digest: str) -> None:
        """What is known of the arrays as they are now."""
        self._source, self._digest, self._arrays = source, digest, self._now

    @property
    def _now(self) -> tuple[Any, ...]:
        return self.x, self.y, self.x_test, self.y_test, self.prepare

    @property
    def _same(self) -> bool:
        """Whether the arrays are those of which source and digest are known."""
        return all(one is other for one, other in zip(self._arrays, self._now, strict=True))

    @property
    def source(self) -> str:
        """The name from which `load` read them; "" for other data, and once an array of theirs is
        replaced."""
        return self._source if self._same else ""

    @property
    def is_function(self) -> bool:
        """Whether batches come from a function; x and y are then those of step 1."""
        return self._function is not None

    def batch(self, step: int, classes: int | None = None) -> Batch:
        """The batch that the function gives for a step, checked against that of step 1.

        Args:
          classes: of which y are labels, from 0 to classes - 1; None: they are not checked.
        """
        assert self._function
        with blamed(f"{self.name}: batch({step})"):
            found = self._function(step)
        if not isinstance(found, tuple) or len(found) != 2:
            raise LabError(f"{self.name}: batch({step}) must return (x, y)")
        x, y = _pair(self.name, f"batch({step})", *found)
        for what, new, first in (("x", x, getattr(self, "x", x)), ("y", y, getattr(self, "y", y))):
            if (new.shape, new.dtype) != (first.shape, first.dtype):
                raise LabError(
                    f"{self.name}: batch({step}) gives {what} as {new.dtype} {list(new.shape)}, "
                    f"batch(1) as {first.dtype} {list(first.shape)}: all batches must be alike"
                )
        low, high = (int(y.min()), int(y.max())) if classes else (0, 0)
        if classes and (low < 0 or high >= classes):
            raise LabError(
                f"{self.name}: batch({step}) has labels from {low} to {high}, and the model "
                f"{classes} classes: labels must be from 0 to {classes - 1} (--model=mlp has as "
                "many classes as batch(1) and y_test show: let one of them hold the largest label)"
            )
        return x, y

    @property
    def num_classes(self) -> int:
        """The largest label, and 1 more; for integer labels."""
        ends = [int(y.max()) for y in (self.y, self.y_test) if y is not None]
        return max(ends) + 1

    @property
    def digest(self) -> str:
        """64 hex digits over the contents as they are now: arrays may be changed between two runs.

        Raises:
          LabError: an array holds NaN or infinity.
        """
        if self._digest and self._same:
            return self._digest
        found = hashlib.sha256()
        if self._function:
            found.update(_code(self._function))
        arrays = {"x": self.x, "y": self.y, "x_test": self.x_test, "y_test": self.y_test}
        for what, array in arrays.items():
            if array is None:
                continue
            found.update(f"{what} {array.dtype.str} {array.shape}".encode())
            for first, piece in _pieces(array):
                if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(piece).all():
                    bad = ~np.isfinite(piece.reshape(len(piece), -1)).all(axis=1)
                    raise LabError(
                        f"{self.name}: {what}[{first + int(bad.argmax())}] holds NaN or infinity: "
                        "remove or replace such examples"
                    )
                found.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        if self.source:  # its arrays are read-only
            self._digest = found.hexdigest()
        return found.hexdigest()


def _pair(name: str, part: str, x: Any, y: Any) -> Batch:
    x = _array(name, part, "x", x)
    y = x if y is None else _array(name, part, "y", y)
    if len(x) != len(y):
        raise LabError(f"{name}: {len(x):,} {part} x but {len(y):,} y: give one y for each x")
    if not x.size or not y.size:
        raise LabError(f"{name}: its {part} examples are empty: {_form(x)}")
    return x, y


def _array(name: str, part: str, what: str, value: Any) -> np.ndarray:
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except (ValueError, TypeError) as error:
        short = " ".join(str(error).split())[:200]
        raise LabError(f"{name}: {part} {what} is not an array: {short}") from error
    if isinstance(value, (list, tuple)):  # Python's numbers have no precision: as TensorFlow does
        kinds = {"f": np.float32, "i": np.int32}
        narrow = array.astype(kinds.get(array.dtype.kind, array.dtype))
        array = narrow if array.dtype.kind == "f" or np.array_equal(narrow, array) else array
    if array.dtype.kind not in "biuf" or not array.ndim:
        kind = "a single value" if not array.ndim else f"dtype {array.dtype}"
        raise LabError(f"{name}: {part} {what} is {kind}: must be an array of numbers")
    return array


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape[1:])} each"


def _code(function: Any) -> bytes:
    """What a function does: its source or, where it was typed in, what Python has compiled it to;
    of what is neither its first batch has to tell."""
    with_source = getattr(function, "__wrapped__", function)
    try:
        return inspect.getsource(with_source).encode()
    except (OSError, TypeError):
        code = getattr(with_source, "__code__", None)
    return repr(compiled(code)).encode() if code else b""


def compiled(code: Any) -> list[Any]:
    """What Python has compiled a function's code to, without its place."""
    constants = [compiled(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _pieces(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Slices along the first axis, each with the number of its first example."""
    length = max(_PIECE // max(array[:1].nbytes, 1), 1)
    for first in range(0, len(array), length):
        yield first, array[first : first + length]


def load(name: str = "mnist") -> Data:
    """Reads a data set: labels int32 [examples], x as in the file, images flattened. The arrays
    are read-only.

    Args:
      name: "mnist", embedded: images uint8 [examples, 784]; a folder with four IDX files, named as
        MNIST's, gzipped or not; or a file FILE.npz with x, y, x_test and y_test.

    Raises:
      LabError: a file is missing, damaged or of another kind, or the files do not fit together.
    """
    if name.endswith(".npz"):
        data, digest = _load_npz(name), ""
    else:
        data, digest = _load_idx("" if name == "mnist" else name)
    for array in data._now:
        if array is not None:
            array.flags.writeable = False  # changed ones would be another data set than `name`
    data._known(name, digest)
    return data


def _load_npz(path: str) -> Data:
    try:
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise LabError(f"{path} holds one array without a name: must be made by np.savez")
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise LabError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    known = ("x", "y", "x_test", "y_test")
    if "x" not in arrays or not set(arrays) <= set(known):
        raise LabError(f"{path} holds {', '.join(arrays)}: must hold x, y, x_test and y_test")
    for name in {"y", "y_test"} & arrays.keys():
        if arrays[name].dtype.kind in "iu":
            arrays[name] = _labels(path, name, arrays[name])
    return Data(**arrays, name=os.path.basename(path))


def _labels(path: str, name: str, array: np.ndarray) -> np.ndarray:
    """Integers as int32."""
    narrow = array.astype(np.int32)
    if not np.array_equal(narrow, array):
        raise LabError(
            f"{path}: {name} go from {array.min():,} to {array.max():,}: labels must fit into int32"
            ", and other targets be floating-point numbers"
        )
    return narrow


def _load_idx(folder: str) -> tuple[Data, str]:
    """The four IDX files of a folder, MNIST itself where it is ""; and a digest of them."""
    arrays, digests = [], []
    for name, expected in FILES.items():
        path, raw = read_file(folder or EMBEDDED, name)
        digest = hashlib.sha256(raw).hexdigest()
        if not folder and digest != expected:
            raise LabError(f"{path} is damaged (its sha256 is not MNIST's): install it again")
        digests.append(digest)
        arrays.append(parse(path, raw, dimensions=3 if "images" in name else 1))
    x, y, x_test, y_test = arrays
    data = Data(
        x,
        y.astype(np.int32),
        x_test,
        y_test.astype(np.int32),
        name=folder or "mnist",
        image_shape=x.shape[1:],
    )
    data.name = os.path.basename(folder.rstrip("/")) or "mnist"
    data.x, data.x_test = (images.reshape(len(images), -1) for images in (x, x_test))
    return data, hashlib.sha256("".join(digests).encode()).hexdigest()
