"""What this machine has: cores, free memory, the kind of its CPU, and whether TensorFlow is to use
oneDNN there. Does not load TensorFlow."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping

# By these a CPU can be told to work as an older kind.
_LIMITS = {
    "XLA": ("XLA_FLAGS", r"--xla_cpu_max_isa=(\w+)"),
    "oneDNN": ("ONEDNN_MAX_CPU_ISA", r"(\w+)"),
}
# Version 2 and version 1: the limit, and what is used of it.
_CONTROL_GROUP = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# Where a CPU has one of these, TensorFlow uses oneDNN's kernels by itself.
_BY_DEFAULT = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
_INSTRUCTIONS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse4_2": "SSE4.2"}


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def free_memory() -> int:
    """Bytes available without swapping, here and in this process's control group; 2^60
    if the system does not say."""
    free = [2**60]
    if text := _read("/proc/meminfo"):
        free += [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s*(\d+)", text)]
    for names in _CONTROL_GROUP:
        limit, used = (_read(f"/sys/fs/cgroup/{name}").strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            free.append(int(limit) - int(used))
    return max(min(free), 0)


def cpu(environment: Mapping[str, str] = os.environ) -> str:
    """The kind of CPU that the numbers of a run are computed on: another kind gives other last
    bits. Its name and its vector instructions, and what XLA and oneDNN are told to use at most.
    """
    fields, flags = _cpuinfo()
    words = [fields.get("model name") or platform.processor() or platform.machine()]
    if "model" in fields:
        words.append(f"family {fields.get('cpu family')} model {fields['model']}")
    words += [name for flag, name in _INSTRUCTIONS.items() if flag in flags][:1]
    for who, (variable, pattern) in _LIMITS.items():
        if limit := re.search(pattern, environment.get(variable, "")):
            words.append(f"{who} limited to {limit[1]}")
    chosen = environment.get(_ONEDNN, "").lower()
    if chosen in ("0", "false"):
        words.append("without oneDNN")
    elif chosen in ("1", "true") and flags and not flags & _BY_DEFAULT:
        words.append("with oneDNN")
    return ", ".join(words)


def enable_onednn() -> None:
    """Has TensorFlow use oneDNN's kernels on every CPU with AVX2, where it is not loaded yet and
    TF_ENABLE_ONEDNN_OPTS is not set: its own convolutions take three times as long there. Processes
    that this one starts inherit that."""
    if "tensorflow" not in sys.modules and "avx2" in _cpuinfo()[1]:
        os.environ.setdefault(_ONEDNN, "1")


def _cpuinfo() -> tuple[dict[str, str], set[str]]:
    """What Linux says of the first core, and its instructions."""
    text = _read("/proc/cpuinfo").partition("\n\n")[0]
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    return fields, {*fields.get("flags", "").split()}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
