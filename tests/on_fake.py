"""A contestant of the benchmark that trains nothing; its name decides what it does instead."""

import os
import sys
import time

import numpy as np
from common import Runner


def make(task):
    print("frameworks print what they like")
    if task.name == "refuses":
        raise ValueError("in user code:\n  here\n  no such thing")

    def run(indices):
        if task.name == "dies":
            sys.exit("out of breath")
        if task.name == "hangs":
            time.sleep(600)
        time.sleep(0.001 * len(indices))
        with open(os.path.join(task.folder, "events"), "ab") as file:
            file.write(b"x" * 10 * len(indices))
        return np.arange(len(indices), dtype=np.float32)

    return Runner(run, chunk=task.chunk, note="a note")


def about():
    return {"fake": "1"}
