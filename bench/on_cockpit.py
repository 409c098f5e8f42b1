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
from common import RATE, Made, Task
from common import about as say
from torch import nn


def make(task: Task) -> Made:
    images, labels = torch.tensor(task.floats()), torch.tensor(task.labels).long()
    model = extend(on_torch.network(task))
    loss_of = extend(nn.CrossEntropyLoss(reduction="sum"))
    each_loss = nn.CrossEntropyLoss(reduction="none")
    if task.rule == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), RATE)
    else:
        optimizer = torch.optim.Adam(model.parameters(), RATE, eps=on_torch.EPSILON)
    each_step = schedules.linear(1)
    watched = [quantities.GradHist1d(each_step), quantities.Loss(each_step)]
    seen = cockpit.Cockpit(model.parameters(), watched)
    done = 0

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal done
        losses = []
        for row in torch.from_numpy(indices):
            x, y = images[row], labels[row]
            optimizer.zero_grad()
            logits = model(x)
            loss = loss_of(logits, y)
            info = {
                "batch_size": task.batch,
                "individual_losses": each_loss(logits, y),
                "loss": loss,
                "optimizer": optimizer,
            }
            with seen(done, info=info):
                loss.backward(create_graph=seen.create_graph(done))
            optimizer.step()
            losses.append(loss.detach())
            done += 1
        seen.write(os.path.join(task.folder, "cockpit"))
        return torch.stack(losses).numpy()

    return Made(run, note="GradHist1d and Loss at each step; the loss without the clip")


def about() -> dict:
    """See common.about."""
    return say(**on_torch.about(), cockpit=metadata.version("cockpit-for-pytorch"))
