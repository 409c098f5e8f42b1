"""IDX files: embedded MNIST, other sets, every kind of damage; batches: the order of examples."""

import gzip
import hashlib
import os
import shutil
import sys

import numpy as np
import pytest
from conftest import idx_bytes

from lab import data
from lab.data import Batches, dataset, load, permutation
from lab.errors import LabError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = data.FILES


def only_line(error):
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.fixture(scope="module")
def mnist():
    return load()


class TestMnist:
    def test_shapes_and_types(self, mnist):
        assert mnist.x.shape == (60000, 784) and mnist.x.dtype == np.uint8
        assert mnist.x_test.shape == (10000, 784) and mnist.x_test.dtype == np.uint8
        assert mnist.y.shape == (60000,) and mnist.y.dtype == np.int32
        assert mnist.y_test.shape == (10000,) and mnist.y_test.dtype == np.int32
        assert mnist.image_shape == (28, 28) and mnist.num_classes == 10

    def test_contents(self, mnist):
        """The sha256 of the original files, which the arrays are put back into."""
        for images, labels, names in (
            (mnist.x, mnist.y, (TRAIN_IMAGES, TRAIN_LABELS)),
            (mnist.x_test, mnist.y_test, (TEST_IMAGES, TEST_LABELS)),
        ):
            originals = idx_bytes(images.reshape(-1, 28, 28)), idx_bytes(labels)
            for name, original in zip(names, originals, strict=True):
                known = {
                    TRAIN_IMAGES: "ba891046e6505d7a",
                    TRAIN_LABELS: "65a50cbbf4e906d7",
                    TEST_IMAGES: "0fa7898d509279e4",
                    TEST_LABELS: "ff7bcfd416de3373",
                }[name]
                assert hashlib.sha256(original).hexdigest().startswith(known)
        assert mnist.x.max() == 255 and mnist.x.min() == 0
        # 980 zeros among the test labels: 0.0980 is what a run collapsed to class 0 scores.
        assert np.bincount(mnist.y_test)[0] == 980
        assert mnist.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]

    def test_a_changed_byte_is_found(self, tmp_path, monkeypatch):
        """Intact gzip and IDX, one pixel changed: only the sha256 sees it."""
        folder = shutil.copytree(dataset.EMBEDDED, tmp_path / "mnist")
        path = folder / f"{TEST_LABELS}.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(raw)))
        monkeypatch.setattr(dataset, "EMBEDDED", str(folder))
        with pytest.raises(LabError) as error:
            load()
        assert str(path) in only_line(error)
        # The same files from --data are somebody's own, and welcome.
        assert load(str(folder)).y_test.shape == (10000,)


class TestOtherData:
    def test_arrays(self, idx_folder, tiny):
        found = load(str(idx_folder))
        train_images, train_labels, test_images, test_labels = tiny
        np.testing.assert_array_equal(found.x, train_images.reshape(103, 12))
        np.testing.assert_array_equal(found.y, train_labels)
        np.testing.assert_array_equal(found.x_test, test_images.reshape(41, 12))
        np.testing.assert_array_equal(found.y_test, test_labels)
        assert found.image_shape == (4, 3) and found.num_classes == 5

    def test_gzip_of_several_members_with_padding(self, idx_folder, tiny):
        path = idx_folder / f"{TEST_LABELS}.gz"
        raw = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(raw[:20]) + gzip.compress(raw[20:]) + bytes(5))
        assert gzip.decompress(path.read_bytes()) == raw
        np.testing.assert_array_equal(load(str(idx_folder)).y_test, tiny[3])

    def test_a_class_that_only_the_test_set_has(self, idx_folder):
        labels = np.arange(41, dtype=np.uint8) % 8
        path = idx_folder / f"{TEST_LABELS}.gz"
        path.write_bytes(gzip.compress(idx_bytes(labels)))
        assert load(str(idx_folder)).num_classes == 8

    def test_label_255(self, idx_folder, tiny):
        labels = tiny[1].copy()
        labels[3] = 255
        (idx_folder / TRAIN_LABELS).write_bytes(idx_bytes(labels))
        found = load(str(idx_folder))
        assert found.num_classes == 256 and found.y[3] == 255

    def test_the_digest_is_of_the_contents(self, idx_folder):
        """Gzipped or not, and wherever it lies: the same data has the same digest."""
        before = load(str(idx_folder)).digest
        path = idx_folder / f"{TRAIN_IMAGES}.gz"
        raw = gzip.decompress(path.read_bytes())
        path.unlink()
        (idx_folder / TRAIN_IMAGES).write_bytes(raw)
        moved = idx_folder.rename(idx_folder.parent / "elsewhere")
        assert load(str(moved)).digest == before
        for position in (16, len(raw) - 1):
            changed = bytearray(raw)
            changed[position] ^= 1
            (moved / TRAIN_IMAGES).write_bytes(changed)
            assert load(str(moved)).digest != before
        assert load().digest != before

    def test_the_digest_is_of_the_contents_now(self, idx_folder):
        """Of what was loaded none can be changed in its place; another array is seen."""
        found = load(str(idx_folder))
        before, images = found.digest, found.x
        for array in (found.x, found.y, found.x_test, found.y_test):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        found.x = images.copy()
        found.x[5, 5] ^= 1
        assert found.source == "" and found.digest != before
        found.x = images
        assert found.source == str(idx_folder) and found.digest == before
        found.y = np.full_like(found.y, 6)
        assert found.num_classes == 7 and found.source == ""

    def test_the_digest_of_arrays_follows_their_changes(self):
        x, y = np.zeros([4, 3], np.float32), np.arange(4)
        found = data.Data(x, y)
        before = found.digest
        assert found.digest == before and found.num_classes == 4
        y[0] = 9
        assert found.digest != before and found.num_classes == 10
        y[0] = 0
        assert found.digest == before


class TestNpz:
    """One file of NumPy's with all arrays."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "one.npz"
        np.savez(path, x=np.ones([6, 4], np.float32), y=np.arange(6) % 3)
        return path

    def test_arrays(self, path):
        found = load(str(path))
        assert found.x.shape == (6, 4) and found.y.dtype == np.int32 and found.source == str(path)
        with pytest.raises(ValueError, match="read-only"):
            found.y[0] = 1

    @pytest.mark.parametrize("end", [0, 3, 100, -200, -1])
    def test_a_file_that_is_cut(self, path, end):
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(LabError) as error:
            load(str(path))
        assert str(path) in only_line(error)

    def test_a_byte_that_has_changed(self, path):
        raw = bytearray(path.read_bytes())
        raw[raw.index(b"NUMPY") + 200] ^= 255
        path.write_bytes(raw)
        with pytest.raises(LabError) as error:
            load(str(path))
        assert str(path) in only_line(error)

    def test_an_array_that_was_renamed(self, path):
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
        with pytest.raises(LabError) as error:
            load(str(path))
        assert str(path) in only_line(error)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32])
    def test_numbers_that_fit_no_label(self, path, dtype):
        np.savez(path, x=np.ones([6, 4]), y=np.full(6, 3_000_000_000, dtype))
        with pytest.raises(LabError) as error:
            load(str(path))
        assert str(path) in only_line(error) and "3,000,000,000" in str(error.value)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _magic(path):
    raw = bytearray(path.read_bytes())
    raw[2] = 13  # floats
    path.write_bytes(raw)


def _rank(path):
    raw = bytearray(path.read_bytes())
    raw[3] ^= 2
    path.write_bytes(raw)


def _empty(path):
    path.write_bytes(b"")


def _header_only(path):
    path.write_bytes(path.read_bytes()[:6])


def _sizes_that_overflow(path):
    """Sizes whose product is 0 in 64 bits."""
    rank = path.read_bytes()[3]
    sizes = [2**31, 2**31, 4][:rank] if rank == 3 else [2**32 - 1]
    path.write_bytes(bytes([0, 0, 8, rank]) + b"".join(n.to_bytes(4, "big") for n in sizes))


def _text(path):
    path.write_text("<html>404 Not Found</html>" * 100)


def _directory(path):
    path.unlink()
    path.mkdir()


def _forbidden(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


def _failing_disk(path):
    """The file can be opened, and reading it fails."""
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("needs /proc")
    path.unlink()
    path.symlink_to("/proc/self/mem")


def _flipped_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(raw)


def _flipped_sum(path):
    """The check sum at the end of the gzip stream, not the data."""
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)


def _cut_gzip(path):
    path.write_bytes(path.read_bytes()[:-20])


def _not_gzip(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


DAMAGE = {
    # what is done: (which files it is done to, one by one)
    _cut: (TRAIN_LABELS, TEST_IMAGES),
    _longer: (TRAIN_LABELS, TEST_IMAGES),
    _magic: (TRAIN_LABELS, TEST_IMAGES),
    _rank: (TRAIN_LABELS, TEST_IMAGES),
    _empty: (TRAIN_LABELS, TEST_IMAGES, f"{TRAIN_IMAGES}.gz"),
    _header_only: (TRAIN_LABELS, TEST_IMAGES),
    _sizes_that_overflow: (TRAIN_LABELS, TEST_IMAGES),
    _text: (TRAIN_LABELS, TEST_IMAGES, f"{TEST_LABELS}.gz"),
    _directory: (TRAIN_LABELS, TEST_IMAGES, f"{TRAIN_IMAGES}.gz"),
    _forbidden: (TRAIN_LABELS, f"{TRAIN_IMAGES}.gz"),
    _failing_disk: (TRAIN_LABELS, f"{TRAIN_IMAGES}.gz"),
    _flipped_bit: (f"{TRAIN_IMAGES}.gz", f"{TEST_LABELS}.gz"),
    _flipped_sum: (f"{TRAIN_IMAGES}.gz", f"{TEST_LABELS}.gz"),
    _cut_gzip: (f"{TRAIN_IMAGES}.gz", f"{TEST_LABELS}.gz"),
    _not_gzip: (f"{TRAIN_IMAGES}.gz", f"{TEST_LABELS}.gz"),
}


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        pytest.param(damage, name, id=f"{damage.__name__[1:]}-{name}")
        for damage, names in DAMAGE.items()
        for name in names
    ],
)
def test_damage_is_named(idx_folder, damage, name):
    load(str(idx_folder))  # whole before
    damage(idx_folder / name)
    with pytest.raises(LabError) as error:
        load(str(idx_folder))
    assert str(idx_folder / name) in only_line(error)


@pytest.mark.parametrize("name", data.FILES)
def test_a_missing_file_is_named(idx_folder, name):
    for path in (idx_folder / name, idx_folder / f"{name}.gz"):
        path.unlink(missing_ok=True)
    with pytest.raises(LabError) as error:
        load(str(idx_folder))
    assert name in only_line(error) and str(idx_folder) in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(LabError) as error:
        load(str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in only_line(error)


@pytest.mark.parametrize(
    ("name", "array", "part"),
    [
        (TRAIN_LABELS, np.zeros(102, np.uint8), "train"),
        (TRAIN_LABELS, np.zeros(104, np.uint8), "train"),
        (TEST_IMAGES, np.zeros((40, 4, 3), np.uint8), "test"),
        (TEST_IMAGES, np.zeros((41, 3, 4), np.uint8), "test"),
        (TEST_IMAGES, np.zeros((41, 4, 4), np.uint8), "test"),
        (TRAIN_LABELS, np.zeros(0, np.uint8), "train"),
    ],
)
def test_files_that_do_not_fit_together(idx_folder, name, array, part):
    (idx_folder / name).write_bytes(idx_bytes(array))
    with pytest.raises(LabError) as error:
        load(str(idx_folder))
    assert str(idx_folder) in only_line(error) and part in str(error.value)


def test_no_examples(idx_folder):
    """Well-formed files that fit together, and hold nothing."""
    (idx_folder / TEST_IMAGES).write_bytes(idx_bytes(np.zeros((0, 4, 3))))
    (idx_folder / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(0))))
    with pytest.raises(LabError) as error:
        load(str(idx_folder))
    assert str(idx_folder) in only_line(error) and "test" in str(error.value)


def test_no_pixels(idx_folder):
    """The same with examples of which each is empty."""
    for path, examples in ((f"{TRAIN_IMAGES}.gz", 103), (TEST_IMAGES, 41)):
        raw = idx_bytes(np.zeros((examples, 0, 3)))
        (idx_folder / path).write_bytes(gzip.compress(raw) if path.endswith("gz") else raw)
    with pytest.raises(LabError) as error:
        load(str(idx_folder))
    assert str(idx_folder) in only_line(error)


# The order of examples.


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 77])
def test_permutation_is_the_order_of_philoxs_raw_stream(seed, epoch):
    """The key given as one integer of 128 bits, the order found by Python's sort."""
    raw = np.random.Philox(key=seed + (epoch << 64)).random_raw(503)
    order = permutation(seed, epoch, 503)
    assert order.dtype == np.int32
    assert order.tolist() == sorted(range(503), key=lambda i: int(raw[i]))


def test_permutation_never_changes():
    """Old runs can be repeated only while these numbers stand."""
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(3, 2, 10).tolist() == [8, 2, 4, 1, 3, 6, 5, 0, 7, 9]


SIZES = [(10, 5), (10, 3), (103, 16), (7, 7), (5, 12), (1, 1), (1, 4), (6, 1)]


@pytest.mark.parametrize(("examples", "batch"), SIZES)
def test_each_epoch_has_each_example_once(examples, batch):
    """The batches in one row: cut into epochs, each is a permutation, and not the same one."""
    steps = 8 * examples // batch + 9
    indices = Batches(3, examples, batch).indices(1, steps)
    assert indices.shape == (steps, batch) and indices.dtype == np.int32
    row = indices.ravel()
    epochs = row[: len(row) // examples * examples].reshape(-1, examples)
    assert len(epochs) >= 8
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.tile(range(examples), (len(epochs), 1))
    )
    if examples >= 6:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
        assert epochs[0].tolist() != epochs[1].tolist()
        assert epochs[0].tolist() != sorted(epochs[0].tolist())


@pytest.mark.parametrize(("examples", "batch"), SIZES)
def test_batches_do_not_depend_on_how_they_are_asked_for(examples, batch):
    whole = Batches(9, examples, batch).indices(1, 40)
    one_by_one, sevens, backwards = (Batches(9, examples, batch) for _ in range(3))
    for step in range(1, 41):
        np.testing.assert_array_equal(one_by_one.indices(step, 1), whole[step - 1 : step])
    for step in range(1, 35, 7):
        np.testing.assert_array_equal(sevens.indices(step, 7), whole[step - 1 : step + 6])
    for step in (40, 17, 18, 1, 40):
        np.testing.assert_array_equal(backwards.indices(step, 1), whole[step - 1 : step])
    np.testing.assert_array_equal(Batches(9, examples, batch).indices(23, 18), whole[22:])
    with pytest.raises(LabError, match="no step 0: the first one is step 1"):
        Batches(9, examples, batch).indices(0, 7)


def test_the_caller_may_change_what_it_gets():
    """A batch that shared memory with the cached permutation would spoil later ones."""
    batches = Batches(0, 20, 5)
    before = batches.indices(1, 4).copy()
    batches.indices(1, 1)[:] = -1
    np.testing.assert_array_equal(batches.indices(1, 4), before)


def test_seeds_differ():
    orders = {tuple(Batches(seed, 50, 50).indices(1, 1)[0].tolist()) for seed in range(20)}
    assert len(orders) == 20


def test_a_late_step_is_as_quick_as_the_first():
    """Step a million, of an epoch far from the first, without a walk through those before it."""
    batches = Batches(0, 60000, 256)
    assert batches.indices(10**6, 1).shape == (1, 256)
    assert sys.getsizeof(batches.indices(10**9, 1)) < 10**5


def test_shuffled_labels_are_as_many_of_each_class_and_say_nothing():
    labels = np.random.default_rng(0).integers(0, 10, 60_000).astype(np.int32)
    first, again, other = (data.shuffled(labels, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == labels.dtype
    np.testing.assert_array_equal(np.bincount(first), np.bincount(labels))
    for one, two in ((first, labels), (first, other)):
        assert abs(np.mean(one == two) - 0.1) < 0.01
    order = data.permutation(0, 0, 60_000)
    assert abs(np.mean(first == labels[order]) - 0.1) < 0.01, "not the order of an epoch"
