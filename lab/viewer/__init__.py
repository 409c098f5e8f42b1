"""A page that shows every step of runs: bin/view."""
