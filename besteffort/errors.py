"""The one exception that bad input raises."""


class InputError(ValueError):
    """Input that a person can mend: one sentence that names the file, the field and the remedy.

    The command line prints the message alone and exits with status 2; library callers see an ordinary `ValueError`.
    """
