"""A network as a plain value: its arrays, what it says about examples, and networks made from it.

Examples are float [n, inputs] in [0, 1], labels integers [n]. All in the arrays' own precision;
means over examples are taken in float64.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

CLIP = 1e-9  # of the reference recipe's loss
_ROWS = 1000  # of a chunk: its activations then stay in the processor's cache


def _sigmoid(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-z) = inf gives the right 0
        return 1 / (1 + np.exp(-z))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """a_0 = x, a_l = activation(a_{l-1} W_l + b_l); the last layer's a_l, the logits, without it.

    Attributes:
      names: of the layers, `h1`, `h2`, ..., `logits`.
      weights: W_l, float [n_in, n_out].
      biases: b_l, float [n_out].
      activation: sigmoid, tanh or relu.

    Raises:
      ValueError: an unknown activation, or shapes that do not fit together.
    """

    names: tuple[str, ...]
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    activation: str

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}")
        width = None
        for name, w, b in zip(self.names, self.weights, self.biases, strict=True):
            if w.ndim != 2 or width not in (None, w.shape[0]) or b.shape != w.shape[1:]:
                raise ValueError(
                    f"{name}: weights {w.shape}, bias {b.shape} do not fit {width or 'any'} inputs"
                )
            width = w.shape[1]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], activation: str) -> Network:
        """From `h1/weights`, `h1/bias`, ..., `logits/bias`, in any order; other names are ignored.

        Raises:
          ValueError: one of them is missing, or as the class.
        """
        numbers = {int(m[1]) for name in tensors if (m := re.fullmatch(r"h(\d+)/weights", name))}
        names = [*(f"h{i + 1}" for i in range(len(numbers))), "logits"]
        wanted = [f"{name}/{part}" for name in names for part in ("weights", "bias")]
        if missing := [name for name in wanted if name not in tensors]:
            raise ValueError(f"no {', '.join(missing)} among the tensors {', '.join(tensors)}")
        arrays = [np.asarray(tensors[name]) for name in wanted]
        return cls(tuple(names), tuple(arrays[::2]), tuple(arrays[1::2]), activation)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every array by its name, weights before bias, first layer first."""
        return {
            f"{name}/{part}": array
            for name, *both in zip(self.names, self.weights, self.biases, strict=True)
            for part, array in zip(("weights", "bias"), both, strict=True)
        }

    def replace(self, tensors: Mapping[str, np.ndarray]) -> Network:
        """The same network with some arrays put in the place of its own, by name."""
        if unknown := tensors.keys() - self.tensors().keys():
            raise ValueError(f"no tensors {', '.join(sorted(unknown))} in {', '.join(self.names)}")
        arrays = list({**self.tensors(), **tensors}.values())
        return Network(self.names, tuple(arrays[::2]), tuple(arrays[1::2]), self.activation)

    def float64(self) -> Network:
        """The same network in double precision."""
        return self.replace({name: np.float64(v) for name, v in self.tensors().items()})

    def after(self, layers: int) -> Network:
        """What follows the first `layers` layers: it takes their activations for its x."""
        parts = (self.names[layers:], self.weights[layers:], self.biases[layers:])
        return Network(*parts, self.activation)


def hidden(network: Network, x: np.ndarray) -> list[np.ndarray]:
    """The activations of every hidden layer, each [n, units]."""
    outputs = []
    for w, b in zip(network.weights[:-1], network.biases[:-1], strict=True):
        x = ACTIVATIONS[network.activation](x @ w + b)
        outputs.append(x)
    return outputs


def logits(network: Network, x: np.ndarray) -> np.ndarray:
    """The last layer's output, [n, classes]. A network without layers gives x back."""
    if not network.weights:
        return x
    chunks = np.split(x, range(_ROWS, len(x), _ROWS))
    last = network.weights[-1], network.biases[-1]
    return np.concatenate(
        [[chunk, *hidden(network, chunk)][-1] @ last[0] + last[1] for chunk in chunks]
    )


def predictions(network: Network, x: np.ndarray) -> np.ndarray:
    """The class with the largest logit, the first of equal ones: integers [n]."""
    return logits(network, x).argmax(axis=1)


def accuracy(network: Network, x: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples whose largest logit is the label's."""
    return float(np.mean(predictions(network, x) == labels))


def cross_entropy(output: np.ndarray, labels: np.ndarray) -> float:
    """The mean over examples of logsumexp(z) - z_label, from logits z [n, classes]; in nats."""
    z = np.float64(output)
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


def softmax(output: np.ndarray) -> np.ndarray:
    """exp(z_j) / sum_k exp(z_k), from logits z [n, classes], in their precision."""
    p = np.exp(output - output.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def clipped_cross_entropy(output: np.ndarray, labels: np.ndarray) -> float:
    """The recipe's loss: the mean over examples of -log(clip(softmax(z)_label, 1e-9, 1)); nats."""
    p = softmax(output)[np.arange(len(output)), labels]
    return float(-np.log(np.clip(np.float64(p), CLIP, 1)).mean())


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """accuracy: share of examples. cross_entropy: unclipped mean, in nats."""

    accuracy: float
    cross_entropy: float


def evaluate(network: Network, x: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Accuracy and mean cross-entropy from one forward pass."""
    output = logits(network, x)
    correct = float(np.mean(output.argmax(axis=1) == labels))
    return Evaluation(correct, cross_entropy(output, labels))


def evaluate_from(network: Network, product: np.ndarray, labels: np.ndarray) -> Evaluation:
    """As `evaluate`, from x W_1 [n, units], for networks that can share that dearest product."""
    z = product + network.biases[0]
    last = len(network.weights) == 1
    return evaluate(network.after(1), z if last else ACTIVATIONS[network.activation](z), labels)


def distance(a: Network, b: Network) -> float:
    """||a - b||: the root of the summed squared differences of all weights and biases."""
    pairs = zip(a.tensors().values(), b.tensors().values(), strict=True)
    return float(np.sqrt(sum(np.sum(np.square(np.float64(v) - u)) for v, u in pairs)))


Law = Callable[[Sequence[int], np.random.Generator], np.ndarray]


def initial_stddev(initializer: str, shape: Sequence[int], stddev: float) -> float:
    """The standard deviation of a layer's initial weights [n_in, n_out].

    normal: `stddev`; glorot: sqrt(2 / (n_in + n_out)) (Glorot and Bengio, AISTATS 2010); he:
    sqrt(2 / n_in) (He et al., ICCV 2015).
    """
    laws = {"normal": stddev, "glorot": np.sqrt(2 / sum(shape)), "he": np.sqrt(2 / shape[0])}
    return float(laws[initializer])


def initial_law(initializer: str, stddev: float) -> Law:
    """The law of a layer's initial weights, (shape, rng) -> float32: glorot's is uniform."""

    def draw(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        sigma = initial_stddev(initializer, shape, stddev)
        limit = sigma * np.sqrt(3)
        glorot = initializer == "glorot"
        values = rng.uniform(-limit, limit, shape) if glorot else rng.normal(0, sigma, shape)
        return values.astype(np.float32)

    return draw
