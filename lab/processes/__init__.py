"""Processes and workers: many trials side by side, many machines for one. No TensorFlow."""
