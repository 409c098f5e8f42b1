"""The run directory: what is written there, and how it is read back."""
