"""Small runs, trained once in a session: what the tests of the report look into."""

import fcntl
import gzip
import os
import pathlib

import numpy as np
import programs
from conftest import idx_bytes

STEPS = 60
COMMON = [
    *(
        f"--training_steps={STEPS}",
        "--batch_size=20",
        "--display_step=2",
        "--reduction=mean",
        "--watch=norms",
    ),
    *("--n_hidden_1=8", "--n_hidden_2=6", "--init_stddev=0.5", "--checkpoint_every=20"),
    "--xla=off",  # it takes longer to compile than to run
]


ADAM = ["--optimizer=adam", "--learning_rate=0.02"]


def images(random, examples, classes=4):
    """Images of 5 x 4 pixels, the first two always dark, the third lit in one image of ten."""
    labels = random.permutation(np.arange(examples) % classes)
    x = 40 + 160 * (np.arange(20) % classes == labels[:, None])
    x += random.integers(0, 40, (examples, 20))
    x[:, :2] = 0
    x[random.random(examples) > 0.1, 2] = 0
    return x.reshape(examples, 5, 4), labels


def write_data(folder, seed=3):
    """The four files of a set of 200 train and 120 test images."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for part, examples in (("train", 200), ("t10k", 120)):
        for kind, array in zip(
            ("images-idx3", "labels-idx1"), images(random, examples), strict=True
        ):
            content = gzip.compress(idx_bytes(array))
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    return folder


def trained(base: pathlib.Path) -> pathlib.Path:
    """A logdir with three seeds of sgd that learns, one that dies, and one of adam; only read.

    `base` is tmp_path_factory's; processes that share the tests share the runs.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    logdir, done = base / "small-runs", base / "small-runs-are-trained"
    with open(base / "small-runs.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _train(write_data(base / "small-data"), logdir)
            done.touch()
    return logdir


def _train(data: pathlib.Path, logdir: pathlib.Path) -> None:
    for seed, rule in enumerate([["--learning_rate=1"]] * 3 + [["--learning_rate=1000"], ADAM]):
        where = (f"--data={data}", f"--logdir={logdir}", f"--seed={seed % 3}")
        outcome = programs.train(*COMMON, *rule, *where)
        assert outcome.status == 0, outcome.err
