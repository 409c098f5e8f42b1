"""A dataset: images and labels, checked, with a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from lab.data.idx_files import FILES, parse, read_file
from lab.errors import LabError

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mnist")


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
      LabError: a file is missing, damaged or not IDX, or the files do not fit together.
    """
    folder = data_dir or EMBEDDED
    arrays, digests = [], []
    for name, expected in FILES.items():
        path, raw = read_file(folder, name)
        digest = hashlib.sha256(raw).hexdigest()
        if not data_dir and digest != expected:
            raise LabError(f"{path} is damaged (its sha256 is not MNIST's): install it again")
        digests.append(digest)
        arrays.append(parse(path, raw, dimensions=3 if "images" in name else 1))
    train_images, train_labels, test_images, test_labels = arrays
    parts = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    for part, (images, labels) in parts.items():
        if len(images) != len(labels) or not len(images):
            raise LabError(
                f"{folder}: {len(images)} {part} images but {len(labels)} labels: "
                "take both files from one set"
            )
    rows, columns = shape = train_images.shape[1:]
    if shape != test_images.shape[1:]:
        raise LabError(
            f"{folder}: train images are {shape}, test images {test_images.shape[1:]} pixels: "
            "take all four files from one set"
        )
    if not rows * columns:
        raise LabError(f"{folder}: its images have no pixels: take another set")
    return Dataset(
        train_images=train_images.reshape(len(train_images), -1),
        train_labels=train_labels.astype(np.int32),
        test_images=test_images.reshape(len(test_images), -1),
        test_labels=test_labels.astype(np.int32),
        image_shape=shape,
        num_classes=int(max(train_labels.max(), test_labels.max())) + 1,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )
