"""How far a text that Whisper heard is from the text that was spoken.

int8 arithmetic differs from processor to processor, and with it a word now and then: a test asks for nearly all of a
text, and of the certain parts (what a voice is given to say) for all.
"""

import re
from difflib import SequenceMatcher


def wrong_characters(said: str, heard: str) -> float:
    """The share of the characters that are not the same in both, 0 to 1. Case and punctuation do not count."""
    said, heard = (" ".join(re.findall(r"\w+", text.lower())) for text in (said, heard))
    return 1 - SequenceMatcher(a=said, b=heard, autojunk=False).ratio()
