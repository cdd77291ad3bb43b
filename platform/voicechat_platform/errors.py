"""The errors that a command tells in one line; it exits with 2 for wrong input, with 1 for the registry."""


class InputError(ValueError):
    """Bad input from a person: the message says what is wrong, where, and what to do."""


class RegistryError(RuntimeError):
    """The registry cannot be reached, or does not do what it is asked; the message says which, and why."""
