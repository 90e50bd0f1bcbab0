"""What a user can cause and mend: one line, a status, no traceback."""

ENVIRONMENT, NUMERICS, STORAGE = 3, 4, 5
"""Exit statuses beside 2, bad input: the machine is not what the run needs, a number is not finite, the disk failed."""


class InputError(ValueError):
    """A mistake in a recipe, a data file, a model folder or an argument.

    The message is one line: file and line or key, the value got, the rule, the fix.
    ``status`` is the exit status of the command: 2 bad input, 3 environment, 4 numerics, 5 storage.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status
