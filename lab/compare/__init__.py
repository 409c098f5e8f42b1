"""The table of results, its intervals and tests. No TensorFlow."""
