"""PyTorch: eager and compiled, alone, with SummaryWriter.add_histogram, with wandb.watch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    ACROSS,
    BLOCKS,
    CLIP,
    EPSILON,
    HEADS,
    NORM_EPSILON,
    PATCH,
    WIDTH,
    Runner,
    Task,
    best,
)
from torch import nn
from torch.nn import functional

Weights = dict[str, np.ndarray]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if ON_GPU:  # with as few digits as TensorFlow and JAX take there
    torch.set_float32_matmul_precision("high")


def make(task: Task) -> Runner:
    layouts: dict[str, dict[str, Any]] = {"": {}}
    if task.network == "convnet" and not ON_GPU:
        layouts["channels_last"] = {"layout": torch.channels_last}
    if task.network == "transformer" and not ON_GPU:
        layouts["attention of products"] = {"ready_made": False}
    ways: dict[str, Callable[[nn.Module], Runner]] = {
        "fused": lambda model: _eager(task, model, fused=True),
        "foreach": lambda model: _eager(task, model, foreach=True),
    }
    if task.name == "PyTorch, torch.compile":
        ways = {
            "one graph": lambda model: _compiled(task, model),
            "network alone": lambda model: _eager(task, torch.compile(model), fused=True),
        }
        if ON_GPU:
            mode = "reduce-overhead"  # CUDA graphs
            ways = {
                "one graph": lambda model: _compiled(task, model, mode=mode),
                "network alone": lambda m: _eager(task, torch.compile(m, mode=mode), fused=True),
            }
        elif not task.mean:
            ways["one graph, max-autotune"] = lambda m: _compiled(task, m, mode="max-autotune")
    elif task.name != "PyTorch, eager":
        recorders = {"PyTorch, add_histogram": _add_histogram, "PyTorch, wandb.watch": _wandb_watch}
        return _eager(task, _network(task), recorders[task.name], fused=True)
    forms = {}
    for (layout, options), (name, way) in itertools.product(layouts.items(), ways.items()):
        form = ", ".join(filter(None, [layout, name]))
        forms[form] = lambda o=options, w=way: w(_network(task, **o).to(DEVICE))
    return best(task, forms)


def _data(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    return torch.tensor(task.floats()).to(DEVICE), torch.tensor(task.labels).long().to(DEVICE)


def _network(
    task: Task, layout: torch.memory_format | None = None, ready_made: bool = True
) -> nn.Module:
    """Of [batch, 784].

    Args:
      layout: of the convnet's tensors in memory.
      ready_made: whether the transformer's attention is PyTorch's, or of two products.
    """
    weights = task.weights()
    if task.network == "convnet":
        model = _convnet(weights)
        return model.to(memory_format=layout) if layout else model
    if task.network == "transformer":
        return _Transformer(weights, ready_made)
    names = dict.fromkeys(name.rpartition("/")[0] for name in weights)
    layers = [part for name in names for part in (_linear(weights, name), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1])


def _linear(weights: Weights, *names: str) -> nn.Linear:
    """One layer of all these, side by side."""
    whole = np.concatenate([weights[f"{name}/weights"] for name in names], 1)
    layer = nn.Linear(*whole.shape)
    layer.weight.data = torch.tensor(whole.T.copy())
    layer.bias.data = torch.tensor(np.concatenate([weights[f"{name}/bias"] for name in names]))
    return layer


def _convolution(weights: Weights, name: str, padding: int) -> nn.Conv2d:
    kernel = weights[f"{name}/weights"].transpose(3, 2, 0, 1)
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=padding)
    layer.weight.data = torch.tensor(kernel.copy())
    layer.bias.data = torch.tensor(weights[f"{name}/bias"])
    return layer


def _convnet(weights: Weights) -> nn.Sequential:
    # Here the channels come first, so that the hidden layer has its rows in another order.
    hidden = weights["hidden/weights"].reshape(5, 5, -1, 120).transpose(2, 0, 1, 3)
    weights = weights | {"hidden/weights": hidden.reshape(-1, 120)}
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for name, padding in (("conv1", 2), ("conv2", 0)):
        layers += [_convolution(weights, name, padding), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), _linear(weights, "hidden"), nn.ReLU(), _linear(weights, "logits")]
    return nn.Sequential(*layers)


def _norm(weights: Weights, name: str) -> nn.LayerNorm:
    layer = nn.LayerNorm(WIDTH, NORM_EPSILON)
    layer.weight.data = torch.tensor(weights[f"{name}/scale"])
    layer.bias.data = torch.tensor(weights[f"{name}/bias"])
    return layer


class _Block(nn.Module):
    def __init__(self, weights: Weights, name: str, ready_made: bool) -> None:
        super().__init__()
        self.ready_made = ready_made
        parts = (f"{name}/attention/{part}" for part in ("query", "key", "value"))
        self.heads = _linear(weights, *parts)
        self.attention_norm = _norm(weights, f"{name}/attention_norm")
        self.output = _linear(weights, f"{name}/attention/output")
        self.feed = nn.Sequential(
            _norm(weights, f"{name}/feed_norm"),
            _linear(weights, f"{name}/feed_in"),
            nn.GELU(approximate="tanh"),
            _linear(weights, f"{name}/feed_out"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.heads(self.attention_norm(x)).view(*x.shape[:2], 3, HEADS, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.ready_made:
            y = functional.scaled_dot_product_attention(query, key, value)
        else:
            y = torch.softmax(query / WIDTH**0.5 * HEADS**0.5 @ key.mT, -1) @ value
        x = x + self.output(y.transpose(1, 2).reshape(x.shape))
        return x + self.feed(x)


class _Transformer(nn.Module):
    def __init__(self, weights: Weights, ready_made: bool) -> None:
        super().__init__()
        self.embedding = _linear(weights, "embedding")
        self.positions = nn.Parameter(torch.tensor(weights["positions"]))
        blocks = (_Block(weights, f"blocks/{i}", ready_made) for i in range(BLOCKS))
        self.blocks = nn.Sequential(*blocks, _norm(weights, "norm"))
        self.logits = _linear(weights, "logits")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, ACROSS, PATCH, ACROSS, PATCH).transpose(2, 3)
        x = self.embedding(x.reshape(-1, ACROSS**2, PATCH**2)) + self.positions
        return self.logits(self.blocks(x).mean(1))


def _optimizer(task: Task, model: nn.Module, **form: bool) -> torch.optim.Optimizer:
    if task.rule == "sgd":
        return torch.optim.SGD(model.parameters(), task.rate, **form)
    return torch.optim.Adam(model.parameters(), task.rate, eps=EPSILON, **form)


def _run_each(step: Callable[[torch.Tensor], torch.Tensor], indices: np.ndarray) -> np.ndarray:
    """The losses of one step after the other."""
    return torch.stack([step(row) for row in torch.from_numpy(indices).to(DEVICE)]).cpu().numpy()


def _loss(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if task.mean:
        return functional.cross_entropy(logits, labels)
    probability = torch.softmax(logits, 1).gather(1, labels[:, None])
    return -probability.clamp(CLIP, 1.0).log().sum()


class _Recorder(NamedTuple):
    step: Callable[[torch.Tensor], object] = lambda loss: None
    flush: Callable[[], object] = lambda: None
    close: Callable[[], object] = lambda: None


def _eager(
    task: Task,
    model: nn.Module,
    record: Callable[[Task, nn.Module], _Recorder] | None = None,
    **form: bool,
) -> Runner:
    """The loop that everyone writes."""
    images, labels = _data(task)
    update = _optimizer(task, model, **form)
    recorder = record(task, model) if record else _Recorder()

    def step(row: torch.Tensor) -> torch.Tensor:
        update.zero_grad(set_to_none=True)
        loss = _loss(task, model(images[row]), labels[row])
        loss.backward()
        update.step()
        recorder.step(loss)
        return loss.detach()

    def run(indices: np.ndarray) -> np.ndarray:
        losses = _run_each(step, indices)
        recorder.flush()
        return losses

    return Runner(run, close=recorder.close)


def _compiled(task: Task, model: nn.Module, **options: str) -> Runner:
    """Gather, forward, gradient and update in one compiled function."""
    images, labels = _data(task)
    parameters = [p.detach() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    slots = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    if ON_GPU:  # weights and slots are assigned in place, and a CUDA graph would copy the images
        for tensor in [images, labels, *parameters, *itertools.chain(*slots)]:
            torch._dynamo.mark_static_address(tensor)

    def loss_of(values: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, values)), (x,))  # noqa: B905
        return _loss(task, logits, y)

    def step(row: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        gradients, loss = torch.func.grad_and_value(loss_of)(parameters, images[row], labels[row])
        for p, m, v, g in zip(parameters, *slots, gradients):  # noqa: B905
            if task.rule == "sgd":
                p.sub_(task.rate * g)
            else:
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                rate = task.rate * torch.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                p.sub_(rate * m / (v.sqrt() + EPSILON))
        return loss

    compiled = torch.compile(step, **options)
    steps = torch.zeros((), device=DEVICE)

    @torch.no_grad()
    def run(indices: np.ndarray) -> np.ndarray:
        # A CUDA graph writes each loss to the same place.
        return _run_each(lambda row: compiled(row, steps.add_(1)).clone(), indices)

    return Runner(run)


def _add_histogram(task: Task, model: nn.Module) -> _Recorder:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(task.folder)
    steps = 0

    def step(loss: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        for name, p in model.named_parameters():
            writer.add_histogram(name, p, steps)
            writer.add_histogram(f"{name}/gradient", p.grad, steps)
        writer.add_scalar("loss", loss, steps)

    return _Recorder(step, writer.flush, writer.close)


def _wandb_watch(task: Task, model: nn.Module) -> _Recorder:
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    run = wandb.init(project="bench", dir=task.folder, mode="offline")
    run.watch(model, log="all", log_freq=1)
    # It has no flush: what its own process has not written at a turn's end is not counted.
    return _Recorder(lambda loss: run.log({"loss": loss.item()}), close=run.finish)


def about() -> dict[str, object]:
    device = {"device": torch.cuda.get_device_name()} if ON_GPU else {}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), **device}
