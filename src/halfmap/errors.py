"""The one exception a user is meant to see."""


class InputError(ValueError):
    """Bad input, told in one line: where (file, row, column or argument), what was expected, what
    arrived, the way out.

    The command line prints the message without a traceback and exits with code 2.
    """
