"""Where on a page the tensors and scalars of runs are placed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

# The tag of a tensor, and what of it is on record; without the second it is the tensor itself.
_TENSOR = re.compile(
    r"(.*?)(?:/(gradient(?:/(?:replica|part)_\d+)?|update|activations))?", re.DOTALL
)
# What is on record of a tensor as scalars, and of the gradients of all tensors together.
_WORD = r"(?:norm|ratio|distance|largest|nonfinite|cosine|variance|signal|scale)"
_GRADIENT = re.compile(rf"gradient/(?:(?:replica|part)_\d+/|noise/)?{_WORD}")
_SCALAR = re.compile(rf"(.+?)/({_GRADIENT.pattern}|(?:update/)?{_WORD})", re.DOTALL)
# The strips of the loss, and whether it is a sum there.
_LOSS = {"loss, summed over the batch": True, "loss, mean over the batch": False}
_USUAL = {"gradient/norm", "update/ratio", "norm"}  # and the scalars of the whole run


def layout(
    histograms: Iterable[str], scalars: Iterable[str], order: Sequence[str], summed: Sequence[bool]
) -> dict[str, Any]:
    """The rows of a page: `tensors`, each with its layer and the tags of what is on record of it,
    in the order of the forward pass; and `strips` of scalars, the same of all tensors in one, each
    with its lines (tag, tensor), the places of the runs that it is of, and whether it is shown from
    the start.

    Args:
      order: tags of variables as the forward pass uses them, as far as that is known.
      summed: of each run, whether its loss is a sum over the batch, so that it cannot be compared
        with a mean, such as the test loss.
    """
    rows: dict[str, list[str]] = {}
    for tag in histograms:
        rows.setdefault(_TENSOR.fullmatch(tag)[1], []).append(tag)  # type: ignore[index]
    bases, places = list(rows), list(order)

    def place(base: str) -> tuple[int, int]:
        if base in places:
            return places.index(base), bases.index(base)
        layer = [i for i, tag in enumerate(places) if _layer(tag) == _layer(base)]
        return max(layer, default=len(places)), bases.index(base)

    strips: dict[str, list[tuple[str, str]]] = {}
    for tag in scalars:
        name, titles = _strips_of(tag, summed)
        for title in titles:
            strips.setdefault(title, []).append((tag, name))
    return {
        "tensors": [
            {"base": base, "layer": _layer(base), "tags": sorted(rows[base])}
            for base in sorted(bases, key=place)
        ],
        "strips": [
            {
                "title": title,
                "lines": lines,
                "runs": [i for i, own in enumerate(summed) if own is _LOSS.get(title, own)],
                "usual": title in _USUAL
                or any(tag == name and not _GRADIENT.fullmatch(tag) for tag, name in lines),
            }
            for title, lines in strips.items()
        ],
    }


def _strips_of(tag: str, summed: Sequence[bool]) -> tuple[str, list[str]]:
    """The name of a scalar's line, and the titles of the strips that it is in."""
    match = None if _GRADIENT.fullmatch(tag) else _SCALAR.fullmatch(tag)
    if match:
        return match[1], [match[2]]
    title = tag.removeprefix("test-")
    if title == "loss" and any(summed):
        own = [strip for strip, is_sum in _LOSS.items() if is_sum in summed]
        return tag, own if tag == title else ["test-loss, mean"]
    return tag, [f"the metric {title}" if re.fullmatch(_WORD, title) else title]


def _layer(base: str) -> str:
    return base.rpartition("/")[0] or base
