"""The one exception that means "what you gave is wrong": the command prints its message and exits with 2."""


class InputError(ValueError):
    """Bad input from a person: the message says what is wrong, where, and what to do."""
