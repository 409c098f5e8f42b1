"""A program in the place of lab/training/worker.py, that answers each order at once with an error.

`python grid_worker.py KIND [ARGUMENT]`: the kind decides what the error says and what happens
before.
"""

import json
import os
import signal
import sys
import time


def gpu(order, workers):
    """Waits until as many workers have a trial, so that none can take all of them."""
    open(f"at{os.getpid()}", "w").close()
    while sum(name.startswith("at") for name in os.listdir()) < int(workers):
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def cores(order):
    return str(sorted(os.sched_getaffinity(0)))


def process(order, field):
    return f"{order['config'][field]} {os.getpid()}"


def fail(order):
    sys.stderr.write("a line\nno such library\n")
    sys.exit(5)


def die(order):
    """Is killed at the trial of seed 1."""
    if order["config"]["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"process {os.getpid()}"


def chatter(order):
    """Prints something else at the trial of seed 1, as native code may."""
    if order["config"]["seed"] == 1:
        print("a notice of native code", flush=True)
    return f"process {os.getpid()}"


def steps(order):
    """Reports some steps, so far apart that a bar shows them."""
    for step in (5, 10, 15):
        time.sleep(0.15)
        print(json.dumps({"step": step, "ran": 5}), flush=True)
    return "no more"


def signal_parent(order, number):
    """Sends the parent a signal, and notes that it is handed on."""
    signal.signal(int(number), lambda *_: sys.exit(open("handed on", "w").close()))
    os.kill(os.getppid(), int(number))
    time.sleep(60)
    return "left alone"


ANSWERS = {f.__name__: f for f in (gpu, cores, process, fail, die, chatter, steps)}
ANSWERS["signal"] = signal_parent

if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    for line in sys.stdin:
        answer = ANSWERS[kind](json.loads(line), *arguments)
        print(json.dumps({"error": answer}), flush=True)
