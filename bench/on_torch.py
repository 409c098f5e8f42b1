"""PyTorch: eager and compiled, alone, with SummaryWriter.add_histogram, with wandb.watch."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from common import CLIP, EPSILON, RATE, Made, Task, best
from common import about as say
from torch import nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(task: Task) -> Made:
    data = torch.tensor(task.floats(), device=DEVICE), torch.tensor(task.labels, device=DEVICE)
    data = data[0], data[1].long()
    fused, foreach = {"fused": True}, {"foreach": True}
    if task.variant == "compile":
        forms = {
            "one graph": lambda: _whole(task, data, {}),
            "one graph, max-autotune": lambda: _whole(task, data, {"mode": "max-autotune"}),
        }
        return best(task, forms)
    if task.variant == "eager":
        forms = {
            "fused": lambda: _eager(task, data, fused),
            "foreach": lambda: _eager(task, data, foreach),
        }
        return best(task, forms)
    return _eager(task, data, fused, RECORDS[task.variant])


def network(task: Task) -> nn.Sequential:
    layers: list[nn.Module] = []
    arrays = iter(task.weights())
    for weights, bias in zip(arrays, arrays):  # noqa: B905
        layer = nn.Linear(*weights.shape)
        layer.weight.data = torch.tensor(weights.T.copy())
        layer.bias.data = torch.tensor(bias)
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers[:-1]).to(DEVICE)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    probability = torch.softmax(logits, 1).gather(1, labels[:, None])
    return -probability.clamp(CLIP, 1.0).log().sum()


def _eager(
    task: Task,
    data: tuple[torch.Tensor, torch.Tensor],
    form: dict[str, bool],
    record: Callable | None = None,
) -> Made:
    """The loop that everyone writes."""
    model = network(task)
    if task.rule == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), RATE, **form)
    else:
        optimizer = torch.optim.Adam(model.parameters(), RATE, eps=EPSILON, **form)
    images, labels = data
    each, end, close = record(task, model) if record else (None, None, None)

    def run(indices: np.ndarray) -> np.ndarray:
        losses = []
        for row in torch.from_numpy(indices).to(DEVICE):
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(model(images[row]), labels[row])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if each:
                each(loss)
        if end:
            end()
        return torch.stack(losses).cpu().numpy()

    return Made(run, close=close)


def _whole(task: Task, data: tuple[torch.Tensor, torch.Tensor], options: dict) -> Made:
    """Gather, forward, gradient and update in one compiled function."""
    model = network(task)
    parameters = [p.detach() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    slots = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    images, labels = data

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
    steps = torch.zeros((), device=DEVICE)

    @torch.no_grad()
    def run(indices: np.ndarray) -> np.ndarray:
        losses = []
        for row in torch.from_numpy(indices).to(DEVICE):
            steps.add_(1)
            losses.append(compiled(row, steps))
        return torch.stack(losses).cpu().numpy()

    return Made(run)


def _add_histogram(task: Task, model: nn.Module) -> tuple[Callable, Callable, Callable]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(task.folder)
    steps = 0

    def each(loss: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        for tag, p in zip(task.tags, model.parameters()):  # noqa: B905
            writer.add_histogram(tag, p, steps)
            writer.add_histogram(f"{tag}/gradient", p.grad, steps)
        writer.add_scalar("loss", loss, steps)

    return each, writer.flush, writer.close


def _wandb_watch(task: Task, model: nn.Module) -> tuple[Callable, Callable, Callable]:
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    run = wandb.init(project="bench", dir=task.folder, mode="offline")
    run.watch(model, log="all", log_freq=1)
    # It has no flush: what its own process has not written at a turn's end is not counted.
    return lambda loss: run.log({"loss": loss.item()}), lambda: None, run.finish


RECORDS = {"add_histogram": _add_histogram, "wandb.watch": _wandb_watch}


def about() -> dict:
    """See common.about."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    return say(torch=torch.__version__, threads=torch.get_num_threads(), device=device)
