"""Errors that a command prints in one line. The command exits with 2 for wrong input and with 1 for the registry."""


class InputError(ValueError):
    """A person gave bad input. The message says what is wrong, where, and what to do."""


class RegistryError(RuntimeError):
    """The registry cannot be reached, or a call failed. The message says which, and why."""
