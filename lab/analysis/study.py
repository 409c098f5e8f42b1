"""All measurements of all runs and pairs of runs, in worker processes without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np

from lab import data
from lab.analysis import collapse, network, sameness, spectrum
from lab.analysis import near_zero as zeros
from lab.analysis import resets as layers
from lab.analysis import sharpness as curvature
from lab.analysis.network import Network
from lab.analysis.runs import Group, Progress, Run, Runs
from lab.errors import LabError
from lab.settings.config import Config

SHARPNESS_EXAMPLES = 2000  # the first training images
PAIR_EXAMPLES = 2000  # the first test images, for pairs outside the reference configuration
MEAN_EXAMPLES = 10_000  # the first training images, for the mean activations
FEATURED = 12  # configurations at most that are measured in depth, those with the most runs
PRUNED = tuple(k / 16 for k in range(17))
LIMITS = (0.01, 0.05, 0.1)  # of |w|, for the shares near 0


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What needs images, of a completed run's final network W_T; in featured groups only.

    accuracy: as evaluated here, to hold against the record. rematched: the cross-entropy barrier
    to a permuted copy after matching, which must be 0.
    """

    accuracy: float
    resets: list[layers.Reset]
    saturation: dict[str, layers.Saturation]
    shuffles: list[spectrum.Shuffle]
    low_rank: list[spectrum.LowRank]
    pruning: zeros.PruningCurve
    symmetry: sameness.Symmetry
    rematched: float
    natural: zeros.NaturalScale
    natural_initial: zeros.NaturalScale


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Of one run. spectra, near_zero and near_zero_initial: by layer, of the weights.

    kurtosis: by layer, start and end. unmoved: h1's rows that hold their first bits. never_lit:
    inputs that are 0 in every training image that the run was shown. first_step: before and after
    one sgd step on the run's first batch; at_end: on the batch after its last; sharpness: at the
    end, of completed runs; these only for plain sgd on the clipped loss.
    """

    spectra: dict[str, spectrum.Spectrum]
    near_zero: dict[str, dict[float, float]]
    near_zero_initial: dict[str, dict[float, float]]
    bias_near_zero: dict[float, float]
    kurtosis: dict[str, tuple[float, float]]
    unmoved: int
    never_lit: int | None = None
    lighting: list[zeros.Movement] = dataclasses.field(default_factory=list)
    first_step: tuple[collapse.VitalSigns, collapse.VitalSigns] | None = None
    at_end: collapse.VitalSigns | None = None
    sharpness: curvature.Eigenvalue | None = None
    seen: Seen | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
    """Of two runs of one configuration. after: the second one's units matched to the first's.

    cka, cka_untrained: by hidden layer.
    """

    disagreement: sameness.Disagreement
    before: sameness.Barrier
    after: sameness.Barrier
    cka: dict[str, float]
    cka_untrained: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Runs and what was measured of them; `measured` by path, `paired` by group label and seeds.

    reference: the group that is looked at most closely. featured: those measured in depth, which
    the pictures compare.
    """

    runs: Runs
    reference: Group | None
    featured: list[Group]
    measured: dict[str, Measured]
    paired: dict[str, dict[tuple[int, int], Paired]]

    def of(self, run: Run) -> Measured:
        return self.measured[run.path]

    def seen(self, group: Group) -> dict[int, Seen]:
        """By seed, of the completed runs whose images are at hand."""
        found = {run.seed: self.of(run).seen for run in group.completed}
        return {seed: seen for seed, seen in found.items() if seen}


def choose_reference(groups: list[Group]) -> Group | None:
    """The configuration that is looked at most closely: with the most completed runs, and of
    those the one that differs least from the recipe."""
    able = [group for group in groups if group.completed]
    return min(able, key=lambda g: (-len(g.completed), _unlike(g.config)), default=None)


def _unlike(config: dict[str, Any]) -> int:
    """How many fields are not the recipe's."""
    fields = dataclasses.fields(Config)
    return sum(config[field.name] != field.default for field in fields if field.name != "watch")


def measure(runs: Runs, progress: Progress | None = None, processes: int | None = None) -> Evidence:
    """Measures every run, and every pair of completed runs of one configuration.

    Args:
      processes: how many at a time, one a core unless given; 0 computes in this process.

    Raises:
      LabError: a worker process was killed.
    """
    plain = [group for group in runs.groups if not group.config.get("shuffle_labels")]
    reference = choose_reference(plain) or choose_reference(runs.groups)
    alone = [group for group in runs.groups if group.replicas == 1 or group is reference]
    most = sorted(alone, key=lambda g: (g is not reference, -len(g.completed)))[:FEATURED]
    featured = [group for group in runs.groups if group in most and group.completed]
    jobs: list[tuple[Any, ...]] = []
    for group in runs.groups:
        folder, deep = runs.folders.get(group.data), group in featured
        jobs += [(_run, run, folder, deep) for run in map(_light, group.runs)]
        if folder is not None and deep:
            count = None if group is reference else PAIR_EXAMPLES
            pairs = itertools.combinations(map(_light, group.completed), 2)
            jobs += [(_pair, a, b, folder, count) for a, b in pairs]
    found = _compute(jobs, progress, processes)
    evidence = Evidence(runs, reference, featured, {}, {group.label: {} for group in runs.groups})
    done = iter(found)
    for group in runs.groups:
        for run in group.runs:
            evidence.measured[run.path] = next(done)
        if group.data in runs.folders and group in featured:
            for a, b in itertools.combinations(group.completed, 2):
                evidence.paired[group.label][a.seed, b.seed] = next(done)
    return evidence


def _light(run: Run) -> Run:
    """What a worker needs of a run: both ends, no series."""
    ends = {0: run.initial, run.steps: run.final}
    return dataclasses.replace(run, networks=ends, scalars={})


def _compute(
    jobs: list[tuple[Any, ...]], progress: Progress | None, processes: int | None
) -> list[Any]:
    """The results of jobs (function, arguments...), in their order."""
    tell = progress or (lambda done, total: None)
    if processes is None:
        affinity = getattr(os, "sched_getaffinity", None)
        processes = len(affinity(0)) if affinity else os.cpu_count() or 1
    tell(0, len(jobs))
    if not processes or len(jobs) < 2:
        found = []
        for i, (function, *arguments) in enumerate(jobs):
            found.append(function(*arguments))
            tell(i + 1, len(jobs))
        return found
    context = multiprocessing.get_context("spawn")
    with _single_threads(), futures.ProcessPoolExecutor(processes, context) as pool:
        waiting = [pool.submit(*job) for job in jobs]
        try:
            for i, one in enumerate(futures.as_completed(waiting)):
                one.result()
                tell(i + 1, len(jobs))
        except futures.process.BrokenProcessPool as error:
            raise LabError(
                "a process that measured was killed, perhaps for want of memory: try again with "
                "fewer cores (taskset) or fewer runs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
        return [one.result() for one in waiting]


@contextlib.contextmanager
def _single_threads() -> Iterator[None]:
    """Processes started in here compute with one thread each, as their NumPy reads at its start."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@functools.cache
def load_data(folder: str) -> tuple[data.Dataset, np.ndarray, np.ndarray]:
    """The data, its test images as float32 in [0, 1], and the share in which each input is lit."""
    dataset = data.load(folder)
    return dataset, unit(dataset.test_images), zeros.lit_shares(dataset.train_images)


def unit(images: np.ndarray) -> np.ndarray:
    """Images uint8 as float32 in [0, 1], as the training divides them."""
    return images.astype(np.float32) / np.float32(255)


def _run(run: Run, folder: str | None, deep: bool) -> Measured:
    start, end, config = run.initial, run.final, run.config
    triples = list(zip(end.names, end.weights, start.weights, strict=True))
    law = config["initializer"], config["init_stddev"]
    sigmas = {name: network.initial_stddev(law[0], w.shape, law[1]) for name, w, _ in triples}
    weights = Measured(
        spectra={name: spectrum.spectrum(w, w0, sigmas[name]) for name, w, w0 in triples},
        near_zero={name: zeros.near_zero_shares(w, LIMITS) for name, w, _ in triples},
        near_zero_initial={name: zeros.near_zero_shares(w0, LIMITS) for name, _, w0 in triples},
        bias_near_zero=zeros.near_zero_shares(np.concatenate(end.biases), LIMITS),
        kurtosis={
            name: (spectrum.row_kurtosis(w0), spectrum.row_kurtosis(w)) for name, w, w0 in triples
        },
        unmoved=int(zeros.unmoved_rows(end.weights[0], start.weights[0]).sum()),
    )
    if folder is None:
        return weights
    dataset, _, lit = load_data(folder)
    return dataclasses.replace(
        weights,
        never_lit=_never_lit(run, dataset, lit),
        lighting=zeros.movement_by_lighting(end.weights[0], start.weights[0], lit),
        **_signs(run, dataset),
        seen=_seen(run, folder) if run.completed and deep else None,
    )


def _never_lit(run: Run, dataset: data.Dataset, lit: np.ndarray) -> int:
    """Of the images that the run was shown: all of them, after one epoch."""
    examples, batch = len(dataset.train_images), run.config["batch_size"]
    if run.steps * batch >= examples:
        return int(np.sum(lit == 0))
    shown = data.Batches(run.seed, examples, batch).indices(1, run.steps)
    return int(zeros.never_lit(dataset.train_images[np.unique(shown)]).sum())


def plain_sgd(config: dict[str, Any]) -> bool:
    """Whether W - rate dL/dW, on the clipped loss and the true labels, is the whole rule."""
    wanted = {"optimizer": "sgd", "loss": "clipped_cross_entropy", "shuffle_labels": False}
    wanted |= {"learning_rate_decay": "none"}
    return all(config.get(name, value) == value for name, value in wanted.items())


def _signs(run: Run, dataset: data.Dataset) -> dict[str, Any]:
    if not plain_sgd(run.config):
        return {}
    batches = data.Batches(run.seed, len(dataset.train_images), run.config["batch_size"])

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = batches.indices(step, 1)[0]
        return unit(dataset.train_images[chosen]), dataset.train_labels[chosen]

    rule = run.config["learning_rate"], run.config["reduction"]
    few = slice(SHARPNESS_EXAMPLES)
    examples = unit(dataset.train_images[few]), dataset.train_labels[few]
    rng = np.random.default_rng(run.seed)
    return {
        "sharpness": curvature.sharpness(run.final, *examples, rng) if run.completed else None,
        "first_step": collapse.autopsy(run.initial, batch(1), batch(2), *rule),
        "at_end": collapse.vital_signs(run.final, *batch(run.steps + 1), *rule),
    }


def _seen(run: Run, folder: str) -> Seen:
    dataset, x, _ = load_data(folder)
    labels, start, end, config = dataset.test_labels, run.initial, run.final, run.config
    rng = np.random.default_rng(run.seed)
    law = network.initial_law(config["initializer"], config["init_stddev"])
    train = unit(dataset.train_images[:MEAN_EXAMPLES])
    outputs = zip(end.names[:-1], network.hidden(end, x), strict=True)
    permuted = sameness.permute_hidden(end, sameness.random_permutations(end, rng))
    rematched = sameness.permute_hidden(permuted, sameness.match(end, permuted, rng))
    few = x[:PAIR_EXAMPLES], labels[:PAIR_EXAMPLES]
    return Seen(
        accuracy=network.accuracy(end, x, labels),
        resets=layers.reset_layers(end, start, x, labels, law, rng),
        saturation={name: layers.saturation(a, end.activation) for name, a in outputs},
        shuffles=spectrum.shuffle_test(end, x, labels, rng),
        low_rank=spectrum.low_rank_changes(end, start, x, labels),
        pruning=zeros.pruning_curve(
            end, x, labels, zeros.mean_inputs(end, train), rng, shares=PRUNED
        ),
        symmetry=sameness.symmetry(end, few[0], rng),
        rematched=sameness.barrier(end, rematched, *few, points=5).cross_entropy_barrier,
        natural=zeros.natural_scale(train, end.weights[0], end.biases[0]),
        natural_initial=zeros.natural_scale(train, start.weights[0], start.biases[0]),
    )


def _pair(a: Run, b: Run, folder: str, count: int | None) -> Paired:
    dataset, images, _ = load_data(folder)
    x, labels = images[:count], dataset.test_labels[:count]
    said_a, said_b = (network.predictions(run.final, images) for run in (a, b))
    labels_of_all, classes = dataset.test_labels, dataset.num_classes
    permutations = sameness.match(a.final, b.final, np.random.default_rng([a.seed, b.seed]))
    matched = sameness.permute_hidden(b.final, permutations)
    return Paired(
        disagreement=sameness.disagreement(said_a, said_b, labels_of_all, classes),
        before=sameness.barrier(a.final, b.final, x, labels),
        after=sameness.barrier(a.final, matched, x, labels),
        cka=_cka(a.final, b.final, images[:PAIR_EXAMPLES]),
        cka_untrained=_cka(a.initial, b.initial, images[:PAIR_EXAMPLES]),
    )


def _cka(a: Network, b: Network, x: np.ndarray) -> dict[str, float]:
    outputs = zip(a.names[:-1], network.hidden(a, x), network.hidden(b, x), strict=True)
    return {name: sameness.linear_cka(u, v) for name, u, v in outputs}
