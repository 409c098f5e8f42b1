"""A program for bin/launch to start as a worker: `python launch_worker.py KIND [ARGUMENT ...]`."""

import json
import os
import signal
import sys
import time

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]


def lines():
    """Three of them, on both streams, the last one without an end."""
    print("one")
    print(INDEX, file=sys.stderr, flush=True)
    print("no end", end="")


def place():
    print(os.environ["TF_CONFIG"])


def end(*statuses):
    """Exits with the status of its index; a negative one is the number of a signal."""
    status = int(statuses[INDEX])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


def fail_first():
    """The last worker fails at once, the others do not end."""
    time.sleep(0 if INDEX else 100)
    sys.exit(7)


def wait():
    """Until SIGTERM, and ends with its status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("on", flush=True)
    time.sleep(100)


def ignore():
    """Does not listen to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("on", os.getpid(), flush=True)
    time.sleep(100)


def train_interrupted(*flags):
    """bin/train, where SIGTERM comes to the worker 1 at the end of each of its evaluations."""
    from lab.training import main, periodic

    evaluate = periodic.Evaluation.__call__

    def interrupted(*arguments):
        evaluate(*arguments)
        if INDEX == 1:
            signal.raise_signal(signal.SIGTERM)

    periodic.Evaluation.__call__ = interrupted
    sys.argv = ["train", *flags]
    sys.exit(main.train())


KINDS = {f.__name__: f for f in (lines, place, end, fail_first, wait, ignore, train_interrupted)}

if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    KINDS[kind](*arguments)
