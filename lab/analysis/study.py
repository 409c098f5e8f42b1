"""All measurements of all runs and pairs of runs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab import data
from lab.analysis import near_zero, resets, sameness, sharpness, spectrum, workers
from lab.analysis.model import fresh, model_of
from lab.analysis.near_zero import LIMITS as LIMITS
from lab.analysis.runs import Group, Run, Runs
from lab.analysis.weights import Weights
from lab.analysis.workers import Compute
from lab.kernels.inputs import prepare
from lab.settings.config import Config

SHARPNESS_EXAMPLES = 2000  # the first training images
PAIR_EXAMPLES = 2000  # the first test images, for permutations and CKA
MEAN_EXAMPLES = 10_000  # the first training images, for the mean activations
DRAWS = 5  # of every random control, in every run
FEATURED = 12  # configurations at most that are measured in depth, those with the most runs


class ImageMeasurements(NamedTuple):
    """What needs images, of a completed run's final weights W_T; in the reference group only.

    accuracy: as evaluated here, to hold against the record. rematched: the cross-entropy barrier
    to a permuted copy after matching, which must be 0.
    """

    accuracy: float
    resets: list[resets.Reset]
    saturation: dict[str, resets.Saturation]
    shuffles: list[spectrum.Shuffle]
    low_rank: list[spectrum.LowRank]
    pruning: near_zero.PruningCurve
    symmetry: sameness.Symmetry
    rematched: float
    natural: near_zero.NaturalScale


class RunMeasurements(NamedTuple):
    """Of one run. spectra, near_zero and near_zero_initial: by layer, of the weights.

    unmoved: h1's rows that hold their first bits. never_lit: inputs that are 0 in every training
    image that the run was shown. sharpness: at the end of completed runs of plain sgd on the
    clipped loss alone. Of completed runs in featured groups alone: predictions, the class of every
    test image, and rewound, the accuracy with a layer put back.
    """

    spectra: dict[str, spectrum.Spectrum]
    near_zero: dict[str, dict[float, float]]
    near_zero_initial: dict[str, dict[float, float]]
    bias_near_zero: dict[float, float]
    unmoved: int
    never_lit: int | None = None
    lighting: list[near_zero.Movement] | tuple[()] = ()
    sharpness: sharpness.Eigenvalue | None = None
    predictions: np.ndarray | None = None
    rewound: dict[str, float] | None = None
    on_images: ImageMeasurements | None = None


_NOTHING = RunMeasurements({}, {}, {}, {}, 0)


class PairMeasurements(NamedTuple):
    """Of two runs of the reference group. after: the second one's units matched to the first's, as
    before where there are none to match. cka, cka_untrained: by hidden layer."""

    before: sameness.Barrier
    after: sameness.Barrier
    cka: dict[str, float]
    cka_untrained: dict[str, float]


class Evidence(NamedTuple):
    """Runs and what was measured of them: `measured` by path, `paired`, of the reference, by seeds.

    reference: the group that is looked at most closely. featured: those that the pictures compare.
    """

    runs: Runs
    reference: Group | None
    featured: list[Group]
    measured: dict[str, RunMeasurements]
    paired: dict[tuple[int, int], PairMeasurements]

    def of(self, run: Run) -> RunMeasurements:
        """What was measured of a run; nothing for those only in the table."""
        return self.measured.get(run.path, _NOTHING)

    def on_images(self, group: Group) -> dict[int, ImageMeasurements]:
        """By seed, of the completed runs whose images are available."""
        found = {run.seed: self.of(run).on_images for run in group.completed}
        return {seed: measured for seed, measured in found.items() if measured}

    def disagreements(self, group: Group) -> dict[tuple[int, int], sameness.Disagreement]:
        """By seeds, of every pair of completed runs whose predictions are known."""
        known = {r.seed: p for r in group.completed if (p := self.of(r).predictions) is not None}
        if not known:
            return {}
        dataset = load_data(self.runs.folders[group.data])[0]
        return {
            (a, b): sameness.disagreement(known[a], known[b], dataset.y_test, dataset.num_classes)
            for a, b in itertools.combinations(known, 2)
        }


def _choose_reference(groups: list[Group]) -> Group | None:
    """The configuration that is looked at most closely: of those with a completed run one whose
    network can be rebuilt, if there is one, whose labels are not shuffled, if there is one, with
    the most completed runs, and of those the one that differs least from the recipe."""
    fields = [field for field in dataclasses.fields(Config) if field.name != "watch"]

    def place(group: Group) -> tuple[bool, bool, int, int]:
        unlike = sum(group.config[field.name] != field.default for field in fields)
        shuffled = bool(group.config.get("shuffle_labels"))
        return not group.known, shuffled, -len(group.completed), unlike

    return min((group for group in groups if group.completed), key=place, default=None)


def _alike(group: Group, reference: Group | None) -> bool:
    """Whether the same is measured of a group as of the reference."""
    if reference is None or group.known or reference.known:
        return group.known
    return group.shown == reference.shown


def measure(runs: Runs, compute: Compute = workers.compute) -> Evidence:
    """Measures every run, and every pair of completed runs of the reference group.

    Where there are runs whose networks can be rebuilt (see `Run.known`), the others are left to the
    table. Else what is measured is of weights and recorded scalars alone, in the reference
    configuration and those with the same weights.

    Args:
      compute: takes the measurements, in this process or in others.

    Raises:
      LabError: a process of `compute` was killed.
    """
    reference = _choose_reference(runs.groups)
    alike = [group for group in runs.groups if _alike(group, reference)]
    alone = [group for group in alike if group.replicas == 1 or group is reference]
    most = sorted(alone, key=lambda g: (g is not reference, -len(g.completed)))[:FEATURED]
    featured = [group for group in runs.groups if group in most and group.completed]
    jobs: dict[Any, tuple[Any, ...]] = {}  # by where its result belongs
    for group in runs.groups:
        folder, deep = runs.folders.get(group.data) if group.known else None, group in featured
        if not (group.known or deep):
            continue
        closely = group is reference
        jobs |= {run.path: (_run, _ends(run), folder, deep, closely) for run in group.runs}
        if folder is not None and closely:
            for a, b in itertools.combinations(group.completed, 2):
                jobs[a.seed, b.seed] = (_pair, _ends(a), _ends(b), folder)
    results = compute(list(jobs.values()))
    evidence = Evidence(runs, reference, featured, {}, {})
    for place, result in zip(jobs, results, strict=True):
        if isinstance(result, RunMeasurements):
            evidence.measured[place] = result
        else:
            evidence.paired[place] = result
    return evidence


def _ends(run: Run) -> Run:
    """What a worker needs of a run: both ends, no series."""
    return dataclasses.replace(run, networks={0: run.initial, run.steps: run.final}, scalars={})


@functools.cache
def load_data(folder: str) -> tuple[data.Data, tf.Tensor, np.ndarray]:
    """The data, its test images as float32 in [0, 1], and the share in which each input is lit."""
    dataset = data.load(folder)
    return dataset, unit(dataset.x_test), near_zero.lit_shares(dataset.x)


def unit(images: np.ndarray) -> tf.Tensor:
    """What the training gives the model, as float32: images uint8 are then in [0, 1]."""
    return tf.cast(prepare(tf.constant(images)), tf.float32)


def _run(run: Run, folder: str | None, deep: bool, closely: bool) -> RunMeasurements:
    shown = run.final.shown().items()
    end, start = ({name: matrices[tag] for name, tag in shown}
                  for matrices in (run.final.matrices(), run.initial.matrices()))  # fmt: skip
    if not end:
        return _NOTHING
    vectors = [np.empty(0), *(w.ravel() for w in run.final.values() if w.ndim < 2)]
    first, initial = (next(iter(one.values())) for one in (end, start))
    shares = near_zero.near_zero_shares
    found = RunMeasurements(
        spectra={name: spectrum.spectrum(w, start[name]) for name, w in end.items()},
        near_zero={name: shares(w) for name, w in end.items()},
        near_zero_initial={name: shares(w) for name, w in start.items()},
        bias_near_zero=shares(np.concatenate(vectors)),
        unmoved=int(near_zero.unmoved_rows(first, initial).sum()),
    )
    if folder is None:
        return found
    dataset, _, lit = load_data(folder)
    moved = near_zero.movement_by_lighting(first, initial, lit)
    found = found._replace(never_lit=_never_lit(run, dataset, lit), lighting=moved)
    if run.completed and plain_sgd(run.config):
        found = found._replace(sharpness=_sharpness(run, dataset))
    if not (run.completed and deep):
        return found
    return found._replace(
        **_compared(run, folder), on_images=_on_images(run, folder) if closely else None
    )


def _never_lit(run: Run, dataset: data.Data, lit: np.ndarray) -> int:
    """Of the images that the run was shown: all of them, after one epoch."""
    examples, batch = len(dataset.x), run.config["batch_size"]
    if run.steps * batch >= examples:
        return int(np.sum(lit == 0))
    shown = data.Batches(run.seed, examples, batch).indices(1, run.steps)
    return int(np.sum(~dataset.x[np.unique(shown)].any(axis=0)))


# W - rate dL/dW, on the clipped loss and the true labels.
PLAIN_SGD = {
    "optimizer": "sgd",
    "loss": "clipped_cross_entropy",
    "shuffle_labels": False,
    "learning_rate_decay": "none",
    "warmup_steps": 0,
    **dict.fromkeys(("sgd_momentum", "weight_decay", "clip_norm"), 0.0),
}


def plain_sgd(config: dict[str, Any]) -> bool:
    """Whether `PLAIN_SGD` is the whole rule."""
    return all(config.get(name, value) == value for name, value in PLAIN_SGD.items())


def _sharpness(run: Run, dataset: data.Data) -> sharpness.Eigenvalue:
    model, rng = model_of(run.config, run.final), np.random.default_rng(run.seed)
    some = slice(SHARPNESS_EXAMPLES)
    return sharpness.sharpness(model, run.final, unit(dataset.x[some]), dataset.y[some], rng)


def _compared(run: Run, folder: str) -> dict[str, Any]:
    """What is shown of every featured group."""
    dataset, x, _ = load_data(folder)
    model, start, end = model_of(run.config, run.final), run.initial, run.final
    back = {n: end.replace({tag: start[tag] for tag in end if tag.rpartition("/")[0] == n})
            for n in end.names}  # fmt: skip
    return {
        "predictions": model.logits(end, x).argmax(axis=1),
        "rewound": {n: model.evaluate(w, x, dataset.y_test).accuracy for n, w in back.items()},
    }


def _on_images(run: Run, folder: str) -> ImageMeasurements:
    dataset, x, _ = load_data(folder)
    labels, start, end = dataset.y_test, run.initial, run.final
    model, rng = model_of(run.config, end), np.random.default_rng(run.seed)
    train, few = unit(dataset.x[:MEAN_EXAMPLES]), x[:PAIR_EXAMPLES]
    copy = sameness.permute_hidden(end, sameness.random_permutations(end, rng))
    copy = sameness.permute_hidden(copy, sameness.match(end, copy, rng))
    back = sameness.barrier(model, end, copy, few, labels[:PAIR_EXAMPLES], points=5)
    # Seeds that no run has.
    drawn = [fresh(run.config, end, seed=-1 - run.seed * DRAWS - i) for i in range(DRAWS)]
    hidden = model.hidden(end, x).items()
    return ImageMeasurements(
        accuracy=model.evaluate(end, x, labels).accuracy,
        resets=resets.reset_layers(model, end, start, drawn, x, labels),
        saturation={n: resets.saturation(a, run.config["activation"]) for n, a in hidden},
        shuffles=spectrum.shuffle_test(model, end, x, labels, rng, DRAWS),
        low_rank=spectrum.low_rank_changes(model, end, start, x, labels),
        pruning=near_zero.pruning_curve(model, end, (x, labels), train, rng, DRAWS),
        symmetry=sameness.symmetry(model, end, few, rng),
        rematched=back.cross_entropy_barrier,
        natural=near_zero.natural_scale(end, train.numpy(), rng, DRAWS),
    )


def _pair(a: Run, b: Run, folder: str) -> PairMeasurements:
    dataset, x, _ = load_data(folder)
    model, labels, few = model_of(a.config, a.final), dataset.y_test, x[:PAIR_EXAMPLES]
    rng = np.random.default_rng([a.seed, b.seed])
    matched = sameness.permute_hidden(b.final, sameness.match(a.final, b.final, rng))

    def cka(*ends: Weights) -> dict[str, float]:
        u, v = (model.hidden(end, few) for end in ends)
        return {name: sameness.linear_cka(u[name], v[name]) for name in u}

    return PairMeasurements(
        before=sameness.barrier(model, a.final, b.final, x, labels),
        after=sameness.barrier(model, a.final, matched, x, labels),
        cka=cka(a.final, b.final),
        cka_untrained=cka(a.initial, b.initial),
    )
