"""What a run says of itself before its first step."""

from __future__ import annotations

from lab import machine
from lab.record.checkpoints import KEEP
from lab.training.problem import sizes
from lab.training.session import AnyRecorder
from lab.training.state import TrainingState


def about(state: TrainingState, recorder: AnyRecorder) -> list[str]:
    """What is trained, how, and what it will take on disk, one line each."""
    config, data, replicas = state.config, state.data, state.loop.replicas
    why = ""
    if config.reduction == "sum" and state.training.optimizer.rule.degree:
        why = f" (the loss is summed over {config.batch_size} examples)"
    elif config.reduction == "sum":
        why = f" ({config.optimizer} divides that scale out, but for its constants)"
    if config.model == "mlp":
        network = f"{'-'.join(map(str, sizes(config, data)))} {config.activation}"
    else:
        weights = sum(v.shape.num_elements() for v in state.training.variables.values())
        network = f"{config.model}, {weights:,} weights in {len(state.training.variables)} tensors"
    examples = f"{len(data.x):,} examples"
    lines = [
        f"{network}, {config.optimizer} at {config.learning_rate:g}, "
        f"batch {config.batch_size}, seed {config.seed}: {config.training_steps:,} steps on "
        + (f"batches of {data.name}" if data.is_function else examples)
        + (f", {replicas} replicas" if replicas > 1 else "")
        + (f", {config.microbatches} micro-batches" if config.microbatches > 1 else ""),
        f"effective learning rate on the mean loss: {state.effective_learning_rate:g}{why}",
        _disk(state, recorder),
    ]
    cores, threads = len(machine.cores()), config.threads
    if cores > threads and not state.loop.on_gpu:
        lines.append(
            f"each operation takes {threads} of {cores} cores; --threads={cores} takes them all, "
            "and gives other last bits"
        )
    here = len(state.strategy.extended.worker_devices)
    if here * threads > cores and here > 1 and threads > 1 and not state.loop.on_gpu:
        lines.append(
            f"{here} replicas with {threads} threads each share {cores} cores; --threads=1 is "
            "faster, and gives other last bits"
        )
    return lines


def _disk(state: TrainingState, recorder: AnyRecorder) -> str:
    """What is still to be written: events, but for the graph and evaluations, and checkpoints."""
    config, left = state.config, state.config.training_steps - state.step
    every = config.histogram_every
    events = recorder.bytes_of(left, every)
    fewer = recorder.bytes_of(left, 10 * every)
    bytes_ = sum(v.shape.num_elements() * v.dtype.size for v in state.variables().values())
    less = f" (with --histogram_every={10 * every} {_size(fewer)})" if fewer < events / 2 else ""
    return (
        f"on disk: {_size(events)} of events{less}, and {KEEP + 1} checkpoints of {_size(bytes_)}"
    )


def _size(count: float) -> str:
    """`18 MB`, in powers of 1000."""
    power = min(len(str(round(count))) - 1, 14) // 3
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
