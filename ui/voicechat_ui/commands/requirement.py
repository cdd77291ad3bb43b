"""What a version must reach before it is promoted, such as right_calls>=0.8."""

import re
from typing import Any

from voicechat_platform.errors import InputError


class Requirement:
    """A bound of one measure.

    Args:
        text: MEASURE>=NUMBER or MEASURE<=NUMBER.

    Raises:
        InputError: the text does not have that form.
    """

    def __init__(self, text: str):
        found = re.fullmatch(r"\s*([a-z_]+)\s*(>=|<=)\s*([0-9]*\.?[0-9]+)\s*", text)
        if found is None:
            raise InputError(f"--require {text!r}: write MEASURE>=NUMBER or MEASURE<=NUMBER, such as right_calls>=0.8")
        self.text, self.name, self.bound = text, found[1], float(found[3])
        self.is_least = found[2] == ">="

    def missed_by(self, measures: dict[str, Any]) -> str | None:
        """Return a sentence about the miss, or None if the measures reach the bound.

        Args:
            measures: the result of `voicechat evaluate`.

        Raises:
            InputError: the measure is not among them.
        """
        value = measures.get(self.name)
        if not isinstance(value, int | float):
            known = ", ".join(name for name, each in measures.items() if isinstance(each, int | float))
            raise InputError(
                f"--require {self.text!r}: {self.name} was not measured; there are {known}, and with --tools FILE "
                f"the shares of calls"
            )
        reached = value >= self.bound if self.is_least else value <= self.bound
        return None if reached else f"{self.name} is {value}, and {self.text.strip()} is required"
