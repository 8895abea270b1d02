"""The one exception that users cause: bad input, said in one sentence that names the culprit and the cure."""


class InputError(ValueError):
    """Bad input: the message is one sentence that names the file, key, token or step and says what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class BusyError(InputError):
    """Another process holds what this one needs: nothing is wrong, a later attempt may succeed. Exit status 1."""
