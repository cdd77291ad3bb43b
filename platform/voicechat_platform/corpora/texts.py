"""The training texts: the packaged plays, Tiny Shakespeare, or any text file."""

import hashlib
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_platform.folders import made_once
from voicechat_platform.paths import given_path
from voicechat_platform.settings import settings

PLAYS = "shakespeare-plays"
TINY_SHAKESPEARE = "tiny-shakespeare"
TINY_SHAKESPEARE_ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

SPEAKER = r"(?m)^[A-Z][A-Za-z .']{1,30}:\n"
"""The line before a speech."""

FRIENDS = ("HAMLET", "HORATIO")
"""The two speakers of a dialogue, if the play has them: a prince who asks, and a friend with short answers."""


@dataclass(frozen=True)
class Text:
    """A whole corpus as one string."""

    source: str
    characters: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.characters.encode()).hexdigest()

    @property
    def is_play(self) -> bool:
        """Whether the text consists of speeches under their speakers' names, so that a model can learn a dialogue."""
        return len(re.findall(SPEAKER, self.characters)) * 400 > len(self.characters)

    def speakers(self) -> tuple[str, str]:
        """Return two characters of a play: the one for the person, and the one who answers."""
        names = [line[:-2] for line in re.findall(SPEAKER, self.characters)]
        if set(FRIENDS) <= set(names):
            return FRIENDS
        exchanges = Counter(pair for pair in pairwise(names) if pair[0] != pair[1])
        return exchanges.most_common(1)[0][0] if exchanges else FRIENDS

    def split(self, validation_fraction: float, test_fraction: float = 0.0) -> tuple[str, str, str]:
        """Return the training part, the validation part, and the test part at the end."""
        whole = len(self.characters)
        first, second = int(whole * (1 - validation_fraction - test_fraction)), int(whole * (1 - test_fraction))
        return self.characters[:first], self.characters[first:second], self.characters[second:]


def read_text(source: str) -> Text:
    """Return the text of a source: "shakespeare-plays", "tiny-shakespeare", or the path of a text file (UTF-8).

    Raises:
        InputError: the file is missing, empty or not text, or the download has a wrong checksum.
    """
    if source == PLAYS:
        return Text(source, packaged_plays())
    if source == TINY_SHAKESPEARE:
        return Text(source, tiny_shakespeare())
    check_is_there(source)
    try:
        characters = given_path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"corpus {source!r} cannot be read as UTF-8 text: {error}") from None
    if not characters.strip():
        raise InputError(f"corpus {source!r} is empty")
    return Text(source, characters)


def check_is_there(source: str) -> None:
    """Check that the source exists.

    Raises:
        InputError: the source is a path, and there is no such file.
    """
    if source not in (PLAYS, TINY_SHAKESPEARE) and not given_path(source).exists():
        raise InputError(
            f"corpus {source!r}: there is no such file; give the path of a text file, {PLAYS} or {TINY_SHAKESPEARE}"
        )


def packaged_plays() -> str:
    """Return 38 plays as speeches: the speaker's name and a colon, then the lines, then an empty line."""
    plays = locate(PLAYS).parent
    return "\n".join(play_from_markdown(path.read_text()) for path in sorted(plays.glob("*/*.md")))


def play_from_markdown(markdown: str) -> str:
    """Return one packaged play as plain speeches, without headings and stage directions, in ASCII."""
    text = re.sub(r"(?m)^#.*$", "", markdown)
    text = re.sub(r"_[^_\n]*_|^.*_.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?m)^\*\*(.+?)\*\* *$", lambda speaker: f"\n{speaker[1]}:", text)
    text = text.replace("—", "--").replace("\\", "").replace("*", "")
    text = re.sub(r"\[[^\]]*\]|[\[\]_]", "", text)
    text = text.encode("ascii", "ignore").decode()
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    # Removed stage directions leave gaps inside a speech; only a speaker's name starts a new one.
    text = re.sub(r"\n{2,}(?![^\n]*:\n)", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare from its public address, verified and stored in the home folder."""
    folder = made_once(settings().folder("corpora") / TINY_SHAKESPEARE, fetch_tiny_shakespeare)
    try:
        data = (folder / "input.txt").read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != TINY_SHAKESPEARE_SHA256:
        raise InputError(
            f"{folder / 'input.txt'} is missing or damaged: delete {folder}; the next command downloads it again"
        )
    return data.decode()


def fetch_tiny_shakespeare(folder: Path) -> None:
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_ADDRESS, timeout=30) as response:
            data = response.read(10_000_000)
    except OSError as error:
        raise InputError(
            f"{TINY_SHAKESPEARE} could not be downloaded from {TINY_SHAKESPEARE_ADDRESS} ({error}); name a copy of "
            "the file as the corpus instead"
        ) from error
    if hashlib.sha256(data).hexdigest() != TINY_SHAKESPEARE_SHA256:
        raise InputError(f"the download from {TINY_SHAKESPEARE_ADDRESS} is not Tiny Shakespeare (its checksum differs)")
    (folder / "input.txt").write_bytes(data)
