"""Draws docs/net.png from the run of the README's net.py: bin/python docs/net_picture.py."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import lab

run = lab.open_run("logs/net")
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
for axis, tag in zip(axes, ["pooled", "conv/weights", "head/weights/gradient"], strict=True):
    steps, edges, counts = run.histogram(tag)  # one row per step
    edges = np.vstack([edges, edges[-1:]])
    across = np.broadcast_to(np.append(steps, steps[-1] + 1)[:, None], edges.shape)
    # The colours of bin/view: the share of the entries, from 0.01% (yellow) to all (blue).
    shares = np.ma.masked_equal(counts, 0) / counts.sum(1, keepdims=True)
    norm = LogNorm(1e-4, 1)
    axis.pcolormesh(across, edges, shares, cmap="cividis_r", norm=norm, rasterized=True)
    axis.set(title=tag, xlabel="step")
figure.savefig("docs/net.png", dpi=110)
