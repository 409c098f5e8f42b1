"""Devices -> the tf.distribute strategy over them, and arrays placed on them."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from lab import machine
from lab.errors import LabError
from lab.processes.cluster import Cluster, patience, slurm_tasks


def threads_in_use() -> int:
    """The threads that an operation of TensorFlow's takes in this process; 0 before its start."""
    if not context.context()._initialized:
        return 0
    return tf.config.threading.get_intra_op_parallelism_threads() or len(machine.cores())


def set_threads(count: int) -> None:
    """Makes TensorFlow use this number of threads per operation, on however many cores.

    A product of matrices is cut for the threads, and on some CPUs the last bits depend on the cut.

    Raises:
      LabError: TensorFlow is already running in this process, with another number.
    """
    if (now := threads_in_use()) == count:
        return
    if count > len(machine.cores()):
        # A thread that waits for work by spinning would keep a core from one that has some.
        options = tf.compat.v1.ConfigProto()
        options.experimental.disable_thread_spinning = True
        with contextlib.suppress(ValueError):  # TensorFlow has begun: it costs time alone
            tf.compat.v1.enable_eager_execution(options)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
    except RuntimeError:
        raise LabError(
            f"--threads={count}: TensorFlow is already running in this process, with {now} "
            "threads: start a new process"
        ) from None


def make_strategy(devices: str = "auto", cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """Creates the strategy over devices of this machine, or over the workers of a cluster.

    Gradients of GPUs are reduced by NCCL; of logical CPU devices on one of them, which beats a
    ring where nothing has to travel.

    Args:
      devices: "auto": all GPUs of this machine, or its CPU where there is none; "gpu:N": the
        first N; "cpu:N": N logical CPU devices; or names, "GPU:0,GPU:2".

    Raises:
      LabError: there are no such devices.
    """
    names = _names(devices)
    if cluster:
        if names[0].startswith("CPU") and len(names) > 1:
            raise LabError(f"--devices={devices}: each of several workers trains on one CPU device")
        # Over the workers TensorFlow takes all that it sees.
        gpus = enumerate(tf.config.list_physical_devices("GPU"))
        tf.config.set_visible_devices([gpu for i, gpu in gpus if f"GPU:{i}" in names], "GPU")
        with _not_for_ever(cluster):
            return tf.distribute.MultiWorkerMirroredStrategy()
    return _mirrored(tuple(names))


@functools.cache
def _mirrored(names: tuple[str, ...]) -> tf.distribute.Strategy:
    """One for the same devices, or the variables of a model could not be trained twice."""
    reduction = None
    if names[0].startswith("CPU") and len(names) > 1:
        reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(list(names), cross_device_ops=reduction)


@contextlib.contextmanager
def _not_for_ever(cluster: Cluster) -> Iterator[None]:
    """Ends the process where TensorFlow waits for a worker that has gone since they met.

    Nothing in Python runs while it waits. So the end is left to faulthandler, and the last word to
    a shell, which speaks only if faulthandler has written to it.
    """
    seconds = 2 * patience()
    words = f"train: {cluster.me}: {cluster.others} came, but did not start; start every worker"
    shell = ["sh", "-c", 'read -r line && echo "$0" >&2', words]
    before = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(shell, stdin=subprocess.PIPE) as speaker:
        assert speaker.stdin
        faulthandler.dump_traceback_later(seconds, exit=True, file=speaker.stdin)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    # TensorFlow has taken SIGTERM for itself, and would do nothing at all with it.
    signal.signal(signal.SIGTERM, before)


def slurm_cluster() -> Cluster | None:
    """The cluster of a Slurm job step with several tasks, `srun --ntasks=N bin/train ...`.

    TF_CONFIG is set for it, from which TensorFlow takes it. The tasks of a node use the ports
    from 8888 on.
    """
    if slurm_tasks() < 2:
        return None
    # It counts GPUs even where there are none, and must not run out of them.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=4096, gpus_per_task=1, auto_set_gpu=False
    )
    workers = resolver.cluster_spec().as_dict()["worker"]
    kind, index = resolver.get_task_info()
    task = {"type": kind, "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    return Cluster(tuple(workers), index)


def _names(devices: str) -> list[str]:
    gpus = [f"GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU")))]
    kind, _, count = devices.partition(":")
    if devices == "auto":
        return gpus or ["CPU:0"]
    if kind in ("gpu", "cpu") and count.isdecimal() and int(count) > 0:
        wanted = [f"{kind.upper()}:{i}" for i in range(int(count))]
    else:
        wanted = [name.strip().upper().removeprefix("/") for name in devices.split(",")]
    numbers = [int(n) for name in wanted if (n := name.removeprefix("CPU:")).isdecimal()]
    have = _logical_cpus(devices, max(numbers) + 1) if len(numbers) == len(wanted) else gpus
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(have):
        raise LabError(
            f"--devices={devices}: must be auto, gpu:N, cpu:N or a list of devices of one kind; "
            f"this machine has {', '.join(gpus) or 'no GPU'} and any number of logical CPU devices"
        )
    return wanted


def _logical_cpus(devices: str, count: int) -> list[str]:
    """The names of at least `count` logical CPU devices, made if TensorFlow has not begun yet.

    Raises:
      LabError: it has, with fewer.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    if count > 1:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError:
            now = len(tf.config.list_logical_devices("CPU"))
            if now < count:
                raise LabError(
                    f"--devices={devices}: TensorFlow is already running in this process, with "
                    f"{now} logical CPU device{'s' * (now > 1)}: start a new process"
                ) from None
            count = now
    return [f"CPU:{i}" for i in range(count)]


def on_gpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas run on GPUs."""
    device = devices(strategy)[0]
    return "GPU" in device if device else bool(tf.config.list_logical_devices("GPU"))


def one_program(strategy: tf.distribute.Strategy) -> bool:
    """Whether a whole training loop can be one program of XLA's: on one device."""
    return strategy.num_replicas_in_sync == 1


def cpu_program(strategy: tf.distribute.Strategy) -> bool:
    """Whether that would be one for a CPU, which kernels/xla.py is written for."""
    return one_program(strategy) and not on_gpu(strategy)


class Resident(NamedTuple):
    """An array on each device of this process.

    Attributes:
      variables: one per device. On a GPU int32 lies there as int64, since TensorFlow keeps
        variables int32 in main memory, out of reach for a program of XLA's.
      dtype: the array's.
    """

    variables: list[tf.Variable]
    dtype: tf.DType

    @property
    def shape(self) -> tf.TensorShape:
        """The array's."""
        return self.variables[0].shape

    def rows(self, device: int, indices: tf.Tensor) -> tf.Tensor:
        """Some of its rows, by their indices."""
        return tf.cast(tf.gather(self.variables[device], indices), self.dtype)


def resident(strategy: tf.distribute.Strategy, array: np.ndarray | Resident) -> Resident:
    """The array on each device of this process: stored once, whatever is compiled.

    They are not made under the strategy's scope, which would send them from worker to worker.
    """
    if isinstance(array, Resident):
        return array
    kept = array.astype(np.int64) if array.dtype == np.int32 and on_gpu(strategy) else array
    variables = []
    for device in devices(strategy):
        with tf.device(device):
            variables.append(tf.Variable(kept, trainable=False))
    return Resident(variables, tf.as_dtype(array.dtype))


def devices(strategy: tf.distribute.Strategy) -> Sequence[str]:
    """The devices of this process; "" for the default strategy, which has none."""
    try:
        return strategy.extended.worker_devices
    except RuntimeError:
        return ("",)
