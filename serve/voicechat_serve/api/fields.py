"""The type of every text that a request brings."""

from typing import Annotated

from pydantic import AfterValidator


def valid_unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer and no response can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no valid Unicode at character {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(valid_unicode)]
