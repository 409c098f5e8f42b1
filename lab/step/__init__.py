"""One training step on every replica, many in one call, and what is recorded of each."""
