"""What broke first in a run: events, the chain of a step, the culprit, and experiments."""
