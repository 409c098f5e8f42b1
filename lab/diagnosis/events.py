"""What happened in a run, found from its record alone: which links left their range, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lab.diagnosis.chain import LINKS, Chain
from lab.diagnosis.growth import course, grown
from lab.diagnosis.ranges import FIRST
from lab.record.run import RunReader

GAP = 16  # steps without a departure that end an event
_LASTING = 8  # steps that a gradient must be 0 for, up to the end of the record
_EARLY = 3.0  # times the first loss: worse than an untrained network
_FITTED = 1e-6  # of the first loss: nothing is left to learn, and gradients may be 0
_FALL = 0.05  # of the first loss: by less it has not fallen
_RISE = math.log(1.5)  # of the loss's level above its lowest, to be a divergence
_STALL, _TENFOLD = 0.5, 10.0  # share of a run without progress, and what grew meanwhile
LARGE = 0.1  # ratio of update to weight: a hundred times what is usual
_REPLACED = 0.5  # ratio from which on little is left of the weight before
MANY = 0.5  # share of the tensors from which on a departure is of all
_WORDS = {"": "out of its range", "nonfinite": "NaN or infinite", "zero": "0 from here on",
          "dead": "too small to change a weight from here on"}  # fmt: skip
_EARLY_WORDS = {"update": "large compared with the weight", "loss": "far above the first"}
# From the mildest on.
SEVERITY = ("departure", "spike", "corruption", "plateau", "divergence", "freeze", "collapse",
            "nonfinite")  # fmt: skip


class Departure(NamedTuple):
    """A link that is out of its range at a step.

    Attributes:
      step, link: see chain.LINKS.
      tags: of the series, the farthest out first; ("loss",) for the loss.
      size: deviation over limit: above 1; inf for what needs no range, such as NaN.
      note: "nonfinite"; "zero", a gradient to the end of the record; "dead", the same of a whole
        layer; "early", before there are ranges; or "".
    """

    step: int
    link: str
    tags: tuple[str, ...]
    size: float
    note: str = ""


class Event(NamedTuple):
    """Departures that follow one another.

    Attributes:
      kind: one of SEVERITY.
      step: at which it shows: the first loss out of range, or the first departure.
      departures: in the order of the chain.
      visible: whether the loss shows it.
    """

    kind: str
    step: int
    departures: tuple[Departure, ...]
    visible: bool


class Mark(NamedTuple):
    """Something that happened at a step: `kind` in a word or two, `text` in more.

    Attributes:
      tag: of the tensor that it is about; empty if it is about the whole run.
    """

    step: int
    kind: str
    text: str
    tag: str = ""


def marks(run: RunReader) -> list[Mark]:
    """The events of a run, and the first departure of each link in them, in order of the steps.

    Reads scalars alone, without TensorFlow.
    """
    found = []
    for event in events(Chain(run)):
        seen = "seen" if event.visible else "not seen"
        found.append(Mark(event.step, event.kind, f"{seen} in the loss"))
        for departure in firsts(event):
            what = _WORDS.get(departure.note) or _EARLY_WORDS[departure.link]
            tag = "" if departure.link == "loss" else departure.tags[0]
            more = f" and {len(departure.tags) - 1} more" if len(departure.tags) > 1 else ""
            text = f"{tag}{more}, {what}" if tag else what
            found.append(Mark(departure.step, departure.link, text, tag))
    return sorted(found, key=lambda mark: mark.step)


def firsts(event: Event) -> list[Departure]:
    """Of each link its first departure in an event, in the order of the chain."""
    seen: dict[str, Departure] = {}
    for departure in event.departures:
        seen.setdefault(departure.link, departure)
    return list(seen.values())


def events(chain: Chain) -> list[Event]:
    """All events, in order of their steps."""
    if not len(chain.steps):
        return []
    departures = sorted(_departures(chain), key=_order)
    groups: list[list[Departure]] = []
    for departure in departures:
        if not groups or departure.step > groups[-1][-1].step + GAP:
            groups.append([])
        groups[-1].append(departure)
    path, last = course(chain), int(chain.steps[-1])
    rise = path.left if path and path.rise > _RISE else 0
    near = max(GAP, path.length) if path else GAP  # steps by which `rise` may be off
    found = [_event(chain, group, rise, near) for group in groups]
    seen = [e.departures[-1].step for e in found if e.visible]
    if rise and not any(step >= rise - near for step in seen):
        found.append(Event("divergence", rise, tuple(_large_updates(chain, rise)), True))
    found = _with_what_followed(found, rise)
    gravest = max((SEVERITY.index(e.kind) for e in found), default=0)
    if gravest == 0 and chain.collapsed:
        found.append(Event("collapse", last, (), True))
    elif gravest == 0 and path and _never_fell(chain):
        found.append(Event("plateau", int(chain.steps[0]), (), True))
    elif gravest < SEVERITY.index("plateau") and path and path.share >= _STALL:
        # That may be all there is to learn, but not where something grows all the while.
        inside = grown(chain, last)
        if inside and inside.times >= _TENFOLD:
            found.append(Event("plateau", path.since, (), True))
    return sorted(found, key=lambda event: event.step)


def _with_what_followed(found: list[Event], rise: int) -> list[Event]:
    """The events, with a collapse or a freeze added to the divergence that led to it: the loss has
    not come back between them."""
    begun = next((e for e in found if e.kind == "divergence" and _rose_early(e)), None)
    since = begun.step if begun else rise
    begun = begun or next((e for e in found if e.kind == "divergence" and e.step <= rise), None)
    later = [e for e in found if e.kind in ("freeze", "collapse") and e.step > since]
    if not begun or not later:
        return found
    departures = (d for e in (begun, *later) for d in e.departures)
    whole = Event(later[-1].kind, begun.step, tuple(sorted(departures, key=_order)), True)
    return [whole, *(e for e in found if e is not begun and e not in later)]


def _rose_early(event: Event) -> bool:
    return any((d.link, d.note) == ("loss", "early") for d in event.departures)


def main_event(found: list[Event]) -> Event | None:
    """The most severe event; among equals, the one farthest out of its range."""

    def weight(event: Event) -> tuple[int, float]:
        return SEVERITY.index(event.kind), max((d.size for d in event.departures), default=0.0)

    return max(found, key=weight, default=None)


def _order(departure: Departure) -> tuple[int, int]:
    return departure.step, LINKS.index(departure.link)


def _departures(chain: Chain) -> Iterator[Departure]:
    for link in LINKS:
        found = chain.ranges[link]
        names = {"loss": ["loss"], "probe": chain.probes}.get(link) or chain.tensors
        names = names or ["all"]
        for row in np.flatnonzero(found.out.any(axis=1)):
            columns = np.flatnonzero(found.out[row])
            columns = columns[np.argsort(-found.z[row, columns], kind="stable")]
            size = float(found.z[row, columns[0]] / found.limits[row])
            tags = tuple(names[c] for c in columns)
            yield Departure(int(chain.steps[row]), link, tags, size)
    yield from _nonfinite(chain)
    yield from _zero(chain)
    yield from _early(chain)


def _nonfinite(chain: Chain) -> Iterator[Departure]:
    """The first step with NaN or infinity, by link; of later ones it is the cause."""
    if not chain.nonfinite:
        return
    first = min(chain.nonfinite.values())
    tags = [tag for tag, step in chain.nonfinite.items() if step == first]
    row = int(np.searchsorted(chain.steps, first))
    by_link: dict[str, list[str]] = {link: [] for link in LINKS}
    for tag in tags:
        name = tag.removesuffix("/gradient")
        if tag == "loss":
            by_link["loss"].append(tag)
        elif tag in chain.probes:
            by_link["probe"].append(tag)
        elif tag.endswith("/gradient"):
            by_link["gradient"].append(name)
        elif tag in chain.tensors and row < len(chain.steps):
            column = chain.tensors.index(tag)
            update = chain.applied[row, column]
            by_link["weight" if np.isfinite(update) else "update"].append(tag)
        else:
            by_link["weight"].append(tag)
    for link, names in by_link.items():
        if names:
            order = names if link in ("loss", "probe") else names[::-1]
            yield Departure(first, link, tuple(order), math.inf, "nonfinite")
    last = _ratios(chain, row)[-1:]
    if last.size and (last >= _REPLACED).mean() >= MANY:
        yield from _large_updates(chain, first)


def _zero(chain: Chain) -> Iterator[Departure]:
    """Gradients that are 0 up to the end of the record, or too small to change a float32 weight in
    all tensors; not those that were so from the start, in some tensors, nor where the loss is about
    0. A layer is dead once all its tensors, two or more, are among them."""
    if not chain.tensors or len(chain.steps) < _LASTING:
        return
    with np.errstate(invalid="ignore"):
        lost = (chain.update <= 2.0**-25 * chain.weight) & (chain.weight > 0)
    zero = chain.gradient == 0
    zero |= lost & lost.all(axis=1, keepdims=True)
    rows = len(zero) - np.where(zero.all(axis=0), len(zero), zero[::-1].argmin(axis=0))
    starts: dict[int, list[str]] = {}
    size = np.abs(chain.loss)
    for tag, row in zip(chain.tensors, rows, strict=True):
        lasts = row <= len(zero) - _LASTING and (row > 0 or zero.all())
        if lasts and not np.median(size[row:]) <= _FITTED * size[0]:
            starts.setdefault(int(chain.steps[row]), []).append(tag)
    layers: dict[str, set[str]] = {}
    for tag in chain.tensors:
        layers.setdefault(tag.rpartition("/")[0], set()).add(tag)
    lost_tags: set[str] = set()
    deaths = []  # steps
    for step, tags in sorted(starts.items()):
        lost_tags |= {*tags}
        own = [layers[tag.rpartition("/")[0]] for tag in tags]
        dead = any(len(layer) > 1 and layer <= lost_tags for layer in own)
        dead |= len(tags) >= MANY * len(chain.tensors)
        yield Departure(step, "gradient", tuple(tags), math.inf, "dead" if dead else "zero")
        deaths += [step] * dead
    if deaths:
        yield from _large_updates(chain, deaths[0])


def _early(chain: Chain) -> Iterator[Departure]:
    """Before there are ranges: a loss that rises above three times the first, and stays there, or
    never comes back below the first, or is NaN soon after; and the steps before it that replaced
    a weight."""
    limit, loss = _EARLY * chain.loss[0], np.where(np.isnan(chain.loss), np.inf, chain.loss)
    never = len(loss) > 2 * FIRST and np.isfinite(loss).all() and _never_back(chain)
    for row in range(1, min(len(loss), 2 * FIRST)):
        if not 0 < limit < loss[row] < np.inf:
            continue
        soon, longer = loss[row : row + 4], loss[row : row + 2 * FIRST]
        lost = not np.isfinite(soon).all() and np.median(soon) > limit
        stays = len(soon) == 4 and np.isfinite(soon).all() and np.median(longer) > limit
        if never or lost or stays:
            step = int(chain.steps[row])
            yield Departure(step, "loss", ("loss",), float(loss[row] / limit), "early")
            yield from _large_updates(chain, step)
            return


def _never_back(chain: Chain) -> bool:
    """Whether in no quarter of the run the loss was lower than the first."""
    loss = np.where(np.isnan(chain.loss), np.inf, chain.loss)
    levels = [np.median(part) for part in np.array_split(loss, min(len(loss), 4))]
    return bool(min(levels) > loss[0] - _FALL * abs(loss[0]))


def _large_updates(chain: Chain, step: int) -> Iterator[Departure]:
    """The first step before `step`, while there were no ranges yet, whose update was large compared
    with a weight."""
    until = int(np.searchsorted(chain.steps, step))
    ratio = _ratios(chain, until)
    rows = np.flatnonzero((ratio >= LARGE).any(axis=1))
    if len(rows) and until <= 2 * FIRST:
        row = int(rows[0])
        columns = np.lexsort((-chain.applied[row], -ratio[row].round(2)))
        tags = [chain.tensors[c] for c in columns if ratio[row, c] >= LARGE]
        size = float(ratio[row].max() / LARGE)
        yield Departure(int(chain.steps[row]), "update", tuple(tags), size, "early")


def _ratios(chain: Chain, until: int) -> np.ndarray:
    """Norms of updates over norms of weights in the rows before `until`: [until, tensors]; 0 for
    tensors that began at 0. If all seem to have, and the loss rose, the update replaced them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = chain.applied[:until] / chain.weight[:until]
    ratio = np.nan_to_num(ratio, posinf=1e6)
    began, soon = chain.began_at_0, chain.loss[1:5]
    if began.all() and ((soon > _EARLY * chain.loss[0]).any() or np.isnan(soon[:1]).any()):
        began = np.zeros_like(began)
    return np.where(began, 0.0, ratio)


def _event(chain: Chain, group: list[Departure], rise: int, near: int) -> Event:
    shown = [d.step for d in group if d.link == "loss"]
    start, end = group[0].step, group[-1].step
    notes = {d.note for d in group}
    row, last = np.searchsorted(chain.steps, [start, end])
    before, after = chain.loss[max(row - 32, 0) : row], chain.loss[last + 1 : last + 33]
    with np.errstate(invalid="ignore"):
        higher = len(before) and len(after) and np.median(after) > 2 * np.median(before) > 0
    if "early" in notes:
        higher = _never_back(chain)
    if "nonfinite" in notes:
        kind = "nonfinite"
    elif "dead" in notes and chain.collapsed:
        kind = "collapse"
    elif any(d.note == "dead" and len(d.tags) == len(chain.tensors) for d in group):
        kind = "freeze"
    elif higher or (rise and start - near <= rise <= end + near):
        kind = "divergence"
    elif shown:
        kind = "spike"
    elif any(d.link == "weight" for d in group) or {"zero", "dead"} & notes:
        kind = "corruption"
    else:
        kind = "departure"
    if not shown:  # a large update comes before what shows
        start = next((d.step for d in group if (d.link, d.note) != ("update", "early")), start)
    visible = bool(shown) or kind in ("nonfinite", "divergence", "freeze", "collapse")
    return Event(kind, min(shown, default=start), tuple(group), visible)


def _never_fell(chain: Chain) -> bool:
    end = np.median(np.log(chain.loss[-len(chain.loss) // 4 :]))
    return bool(end > np.median(np.log(chain.loss[:4])) - _FALL)
