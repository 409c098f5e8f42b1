"""Draws docs/net.png from the run of the README's net.py: bin/python docs/net_picture.py."""

import matplotlib.pyplot as plt
import numpy as np

import lab

run = lab.open_run("logs/net")
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
for axis, tag in zip(axes, ["pooled", "conv/weights", "head/weights/gradient"], strict=True):
    steps, edges, counts = run.histogram(tag)  # one row per step
    edges = np.vstack([edges, edges[-1:]])
    across = np.broadcast_to(np.append(steps, steps[-1] + 1)[:, None], edges.shape)
    axis.pcolormesh(across, edges, np.log10(counts + 1), cmap="cividis", rasterized=True)
    axis.set(title=tag, xlabel="step")
figure.savefig("docs/net.png", dpi=110)
