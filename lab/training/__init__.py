"""bin/train: one trial from its config to result.json."""
