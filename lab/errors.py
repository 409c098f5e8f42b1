"""The one exception that ends a program with a line instead of a traceback."""


class LabError(Exception):
    """Something that the user, or the machine, can put right; the text says what and how."""
