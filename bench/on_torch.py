"""PyTorch: eager and compiled, alone, with SummaryWriter.add_histogram, with wandb.watch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from common import CLIP, EPSILON, RATE, Runner, Task, best
from torch import nn


def make(task: Task) -> Runner:
    forms = {
        "PyTorch, eager": {
            "fused": lambda: _eager(task, fused=True),
            "foreach": lambda: _eager(task, foreach=True),
        },
        "PyTorch, torch.compile": {
            "one graph": lambda: _compiled(task),
            "one graph, max-autotune": lambda: _compiled(task, mode="max-autotune"),
        },
    }
    if task.name in forms:
        return best(task, forms[task.name])
    recorders = {"PyTorch, add_histogram": _add_histogram, "PyTorch, wandb.watch": _wandb_watch}
    return _eager(task, recorders[task.name], fused=True)


def data(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    return torch.tensor(task.floats()), torch.tensor(task.labels).long()


def network(task: Task) -> nn.Sequential:
    layers: list[nn.Module] = []
    arrays = iter(task.weights())
    for weights, bias in zip(arrays, arrays):  # noqa: B905
        layer = nn.Linear(*weights.shape)
        layer.weight.data = torch.tensor(weights.T.copy())
        layer.bias.data = torch.tensor(bias)
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def optimizer(task: Task, model: nn.Module, **form: bool) -> torch.optim.Optimizer:
    if task.rule == "sgd":
        return torch.optim.SGD(model.parameters(), RATE, **form)
    return torch.optim.Adam(model.parameters(), RATE, eps=EPSILON, **form)


def run_each(step: Callable[[torch.Tensor], torch.Tensor], indices: np.ndarray) -> np.ndarray:
    """The losses of one step after the other."""
    return torch.stack([step(row) for row in torch.from_numpy(indices)]).numpy()


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    probability = torch.softmax(logits, 1).gather(1, labels[:, None])
    return -probability.clamp(CLIP, 1.0).log().sum()


class _Recorder(NamedTuple):
    step: Callable[[torch.Tensor], object] = lambda loss: None
    flush: Callable[[], object] = lambda: None
    close: Callable[[], object] = lambda: None


def _eager(
    task: Task, record: Callable[[Task, nn.Module], _Recorder] | None = None, **form: bool
) -> Runner:
    """The loop that everyone writes."""
    images, labels = data(task)
    model = network(task)
    update = optimizer(task, model, **form)
    recorder = record(task, model) if record else _Recorder()

    def step(row: torch.Tensor) -> torch.Tensor:
        update.zero_grad(set_to_none=True)
        loss = _loss(model(images[row]), labels[row])
        loss.backward()
        update.step()
        recorder.step(loss)
        return loss.detach()

    def run(indices: np.ndarray) -> np.ndarray:
        losses = run_each(step, indices)
        recorder.flush()
        return losses

    return Runner(run, close=recorder.close)


def _compiled(task: Task, **options: str) -> Runner:
    """Gather, forward, gradient and update in one compiled function."""
    images, labels = data(task)
    model = network(task)
    parameters = [p.detach() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    slots = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]

    def loss_of(values: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _loss(torch.func.functional_call(model, dict(zip(names, values)), (x,)), y)  # noqa: B905

    def step(row: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        gradients, loss = torch.func.grad_and_value(loss_of)(parameters, images[row], labels[row])
        for p, m, v, g in zip(parameters, *slots, gradients):  # noqa: B905
            if task.rule == "sgd":
                p.sub_(RATE * g)
            else:
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                rate = RATE * torch.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                p.sub_(rate * m / (v.sqrt() + EPSILON))
        return loss

    compiled = torch.compile(step, **options)
    steps = torch.zeros(())

    @torch.no_grad()
    def run(indices: np.ndarray) -> np.ndarray:
        return run_each(lambda row: compiled(row, steps.add_(1)), indices)

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
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
