"""Answers from finished runs, as a page and as figures."""
