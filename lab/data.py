"""The examples: IDX files, checked, and which of them make up each step.

The batch of a step is a pure function of (seed, epoch, step). There is no iterator, and so no
state to save: a run that goes on at step t reads the same examples as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator

import numpy as np

from lab.errors import LabError

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "datasets", "mnist")

# The four files and the sha256 of MNIST's, unpacked.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images uint8 [examples, pixels], labels int32 [examples], of a train and a test set.

    `image_shape` is (rows, columns); `digest` is a sha256 over the contents of the four files.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    image_shape: tuple[int, int]
    num_classes: int
    digest: str


def load(data_dir: str = "") -> Dataset:
    """Reads the four IDX files of `data_dir`, gzipped or not; MNIST itself where it is empty.

    Raises:
      LabError: a file is missing, cut, damaged or not IDX, or the files do not fit together. The
        text names the file and what to do.
    """
    folder = data_dir or EMBEDDED
    arrays, digests = [], []
    for name, expected in FILES.items():
        path, raw = _read(folder, name)
        digest = hashlib.sha256(raw).hexdigest()
        if not data_dir and digest != expected:
            raise LabError(f"{path} is damaged (its sha256 is not MNIST's): install it again")
        digests.append(digest)
        arrays.append(_parse(path, raw, dimensions=3 if "images" in name else 1))
    train_images, train_labels, test_images, test_labels = arrays
    for part, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        if len(images) != len(labels) or not len(images):
            raise LabError(
                f"{folder}: {len(images)} {part} images but {len(labels)} labels: "
                "take both files from one set"
            )
    if train_images.shape[1:] != test_images.shape[1:]:
        raise LabError(
            f"{folder}: train images are {train_images.shape[1:]}, test images "
            f"{test_images.shape[1:]} pixels: take all four files from one set"
        )
    rows, columns = train_images.shape[1:]
    if not rows * columns:
        raise LabError(f"{folder}: its images have no pixels: take another set")
    return Dataset(
        train_images=train_images.reshape(len(train_images), -1),
        train_labels=train_labels.astype(np.int32),
        test_images=test_images.reshape(len(test_images), -1),
        test_labels=test_labels.astype(np.int32),
        image_shape=(rows, columns),
        num_classes=int(max(train_labels.max(), test_labels.max())) + 1,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _read(folder: str, name: str) -> tuple[str, bytes]:
    for path, opener in ((f"{name}.gz", gzip.open), (name, open)):
        path = os.path.join(folder, path)
        if not os.path.exists(path):
            continue
        try:
            with opener(path, "rb") as file:
                return path, file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise LabError(f"{path} cannot be read ({error}): replace it") from error
    raise LabError(
        f"no {name}.gz and no {name} in {folder}: --data_dir wants a folder with the four files "
        + ", ".join(FILES)
    )


def _parse(path: str, raw: bytes, dimensions: int) -> np.ndarray:
    """IDX: two zero bytes, type 8 (uint8), rank, the sizes as big-endian int32, the entries."""
    header = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) < header:
        raise LabError(f"{path} is not an IDX file of {dimensions} dimensions of bytes: replace it")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, 4))
    entries = math.prod(shape)
    if len(raw) != header + entries:
        raise LabError(
            f"{path} holds {len(raw) - header} entries where its header says {entries}: replace it"
        )
    return np.frombuffer(raw, np.uint8, entries, header).reshape(shape)


def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of one epoch: int32 [examples], each example once.

    The order of Philox's raw 64-bit outputs under the key (seed, epoch): NumPy promises that
    stream for good, which it does not for `Generator.permutation`.
    """
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples)).astype(np.int32)


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels in a random order: as many of each class, and none says anything of its image.

    Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017.
    """
    return labels[permutation(seed, 2**64 - 1, len(labels))]


class Batches:
    """Which training examples make up which step.

    The epochs stand in one row behind another, and step t (from 1) takes the t-th `batch_size`
    examples of that row: a batch may cross from one epoch into the next, and none is smaller.
    """

    def __init__(self, seed: int, examples: int, batch_size: int) -> None:
        self._seed, self._examples, self._batch_size = seed, examples, batch_size
        self._epochs: dict[int, np.ndarray] = {}  # only a cache; see `permutation`

    def indices(self, first_step: int, steps: int) -> np.ndarray:
        """int32 [steps, batch_size]: the examples of `steps` steps from `first_step` (from 1)."""
        start = (first_step - 1) * self._batch_size
        stop = start + steps * self._batch_size
        return np.concatenate(list(self._pieces(start, stop))).reshape(steps, self._batch_size)

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        first, last = start // self._examples, (stop - 1) // self._examples
        self._epochs = {
            epoch: self._epochs[epoch]
            if epoch in self._epochs
            else permutation(self._seed, epoch, self._examples)
            for epoch in range(first, last + 1)
        }
        for epoch, order in self._epochs.items():
            offset = epoch * self._examples
            yield order[max(start - offset, 0) : stop - offset]
