"""What the tests share: a quiet, deterministic TensorFlow with four CPU devices, tiny data sets.

No test module makes a tensor while it is imported: the devices are fixed before the first one.
"""

import gzip
import os

import forks
import numpy as np
import programs
import pytest

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def pytest_configure(config: pytest.Config) -> None:
    # The process that hands the tests to others runs none itself.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        _load_tensorflow()


def _load_tensorflow() -> None:
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    import keras  # noqa: F401
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        # The programs that tests start need room beside this one.
        tf.config.experimental.set_memory_growth(gpu, True)
    # Four devices, so that the replicas of a distributed test are really different ones.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    tf.config.threading.set_intra_op_parallelism_threads(2)  # as a run's, by default
    tf.config.experimental.enable_op_determinism()
    tf.config.list_logical_devices()  # reads the settings, once and for all
    # The programs that tests start see the environment of the user, not this one.
    for name, value in before.items():
        del os.environ[name]
        if value is not None:
            os.environ[name] = value


# Their tests compare with the same few runs of forked processes. In the fast set one process takes
# them all, first; in the whole set that would be most of the time.
_FORKS = ("faults", "resume", "run", "same_everywhere", "stored", "train")
_FORKS = tuple(f"tests/test_{name}.py" for name in _FORKS)


def _are_together(config: pytest.Config) -> bool:
    return config.getoption("dist", "no") == "loadfile" and config.getoption("-m") == "not slow"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput") and config.workerinput["together"]:
        items.sort(key=lambda item: not item.nodeid.startswith(_FORKS))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["together"] = _are_together(node.config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    if not _are_together(config):
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "forks" if nodeid.startswith(_FORKS) else super()._split_scope(nodeid)

    return Together(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            pytest.skip("needs a GPU, and TensorFlow sees none")


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes: see http://yann.lecun.com/exdb/mnist (the format's own page)."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def learnable(seed, classes, shape, noise, *counts):
    """For each count, so many images uint8 and their labels uint8, of classes that can be learnt: a
    random image for each, and noise."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 256, (classes, *shape))
    found = []
    for examples in counts:
        labels = random.permutation(np.arange(examples) % classes).astype(np.uint8)
        images = centres[labels] + random.integers(-noise, noise + 1, (examples, *shape))
        found += [np.clip(images, 0, 255).astype(np.uint8), labels]
    return tuple(found)


@pytest.fixture(scope="session")
def tiny():
    """Four arrays: 103 train and 41 test images of 4 x 3 pixels, 5 classes that can be learnt."""
    return learnable(7, 5, (4, 3), 40, 103, 41)


@pytest.fixture
def idx_folder(tmp_path, tiny):
    """A folder for --data with the tiny set: two of the files are gzipped, two are not."""
    folder = tmp_path / "idx"
    folder.mkdir()
    names = [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte.gz",
    ]
    for name, array in zip(names, tiny, strict=True):
        content = idx_bytes(array)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.fixture(scope="session")
def no_tensorflow(tmp_path_factory):
    """A PYTHONPATH on which loading TensorFlow, or what loads it, ends a program with status 99."""
    folder = tmp_path_factory.mktemp("stub")
    for name in ("tensorflow", "tensorboard", "keras"):
        (folder / f"{name}.py").write_text("import os\n\nos._exit(99)\n")
    return f"{folder}{os.pathsep}{programs.ROOT}"


# A program in forked processes, and runs of it that several modules compare with.


@pytest.fixture(scope="session")
def program(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("forks")
    return forks.Program(forks.write_idx(folder / "idx", tiny), folder / "runs")


@pytest.fixture(scope="session")
def whole(program):
    return program.undisturbed(forks.RUN)


@pytest.fixture(scope="session")
def long(program):
    return program.undisturbed(forks.LONG)


@pytest.fixture
def killed_at_24(program):
    return program.killed_at_24()
