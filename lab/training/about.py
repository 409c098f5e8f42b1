"""What a run prints about itself before its first step."""

from __future__ import annotations

import os

from lab import machine
from lab.models.optimizers import RULES
from lab.record.checkpoints import KEEP
from lab.record.directory import checkpoint_paths
from lab.record.event_bytes import Layout
from lab.training.periodic import Checkpointing, Evaluation
from lab.training.problem import sizes
from lab.training.session import AnyRecorder
from lab.training.state import TrainingState


def about(
    path: str,
    state: TrainingState,
    recorder: AnyRecorder,
    evaluate: Evaluation,
    save: Checkpointing,
) -> list[str]:
    """What is trained, how, and the disk space it will take, one line each; path: the run
    directory, which holds the first checkpoint."""
    config, data, replicas = state.config, state.data, state.loop.replicas
    rule = state.training.optimizer.rule
    name = config.optimizer if type(rule) in RULES.values() else type(rule).__name__
    why = ""
    if config.reduction == "sum" and rule.degree:
        why = f" (the loss is summed over {config.batch_size} examples)"
    elif config.reduction == "sum":
        why = f" ({name} cancels that scale, except in its constants)"
    if config.model == "mlp":
        network = f"{'-'.join(map(str, sizes(config, data)))} {config.activation}"
    else:
        weights = sum(v.shape.num_elements() for v in state.training.variables.values())
        network = f"{config.model}, {weights:,} weights in {len(state.training.variables)} tensors"
    examples = f"{len(data.x):,} examples"
    lines = [
        f"{network}, {name} at {config.learning_rate:g}, "
        f"batch {config.batch_size}, seed {config.seed}: {config.training_steps:,} steps on "
        + (f"batches of {data.name}" if data.is_function else examples)
        + (f", {replicas} replicas" if replicas > 1 else "")
        + (f", {config.microbatches} micro-batches" if config.microbatches > 1 else ""),
        f"effective learning rate on the mean loss: {state.effective_learning_rate:g}{why}",
        _disk(path, state, recorder, evaluate, save),
    ]
    cores, threads = len(machine.cores()), config.threads
    here = len(state.strategy.extended.worker_devices)
    share, words = max(cores // here, 1), ""
    if threads > share and here > 1:
        words = f"{here} replicas of {threads} threads share {cores} cores; "
        words += f"--threads={share} keeps them apart"
    elif threads < share:
        words = f"each operation uses {threads} of {share} cores; --threads={share} uses them all"
    if words and not state.loop.on_gpu:
        lines.append(f"{words}, but changes the last bits of the results")
    return lines


def _disk(
    path: str,
    state: TrainingState,
    recorder: AnyRecorder,
    evaluate: Evaluation,
    save: Checkpointing,
) -> str:
    """The disk space that the run takes when it ends: what is written, and what is to come."""
    config, every = state.config, state.config.histogram_every
    evaluation = sum(Layout([tag]).size for tag in evaluate.tags)
    there = recorder.size + evaluate.left(state.step) * evaluation
    left = config.training_steps - state.step
    events, fewer = (there + recorder.bytes_of(left, n) for n in (every, 10 * every))
    less = f" (with --histogram_every={10 * every} {_size(fewer)})" if fewer < events / 2 else ""
    saved = [*checkpoint_paths(path).values()] or [path]
    bytes_ = sum(entry.stat().st_size for entry in os.scandir(saved[0]))
    kept = 1 + min(len(saved) - 1 + save.left(state.step), KEEP)
    return f"on disk: {_size(events)} of events{less}, and {kept} checkpoints of {_size(bytes_)}"


def _size(count: float) -> str:
    """`18 MB`, in powers of 1000."""
    power = min(len(str(round(count))) - 1, 14) // 3
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
