"""Cockpit, on PyTorch: its histogram of the single examples' gradients, and the loss.

Its loss is PyTorch's cross-entropy, which is not clipped: Cockpit knows no other that is summed.
"""

from __future__ import annotations

import os
from importlib import metadata

import cockpit
import numpy as np
import on_torch
import torch
from backpack import extend
from cockpit import quantities
from cockpit.utils import schedules
from common import Runner, Task
from torch import nn


def make(task: Task) -> Runner:
    images, labels = on_torch.data(task)
    model = extend(on_torch.network(task))
    loss_of = extend(nn.CrossEntropyLoss(reduction="sum"))
    each_loss = nn.CrossEntropyLoss(reduction="none")
    optimizer = on_torch.optimizer(task, model)
    each_step = schedules.linear(1)
    watched = [quantities.GradHist1d(each_step), quantities.Loss(each_step)]
    recorder = cockpit.Cockpit(model.parameters(), watched)
    done = 0

    def step(row: torch.Tensor) -> torch.Tensor:
        nonlocal done
        optimizer.zero_grad()
        logits = model(images[row])
        loss = loss_of(logits, labels[row])
        info = {
            "batch_size": task.batch,
            "individual_losses": each_loss(logits, labels[row]),
            "loss": loss,
            "optimizer": optimizer,
        }
        with recorder(done, info=info):
            loss.backward(create_graph=recorder.create_graph(done))
        optimizer.step()
        done += 1
        return loss.detach()

    def run(indices: np.ndarray) -> np.ndarray:
        losses = on_torch.run_each(step, indices)
        recorder.write(os.path.join(task.folder, "cockpit"))
        return losses

    return Runner(run, note="GradHist1d and Loss at each step; the loss without the clip")


def about() -> dict[str, object]:
    return on_torch.about() | {"cockpit": metadata.version("cockpit-for-pytorch")}
