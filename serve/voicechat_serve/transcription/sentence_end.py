"""The end-of-turn classifier: a chat model predicts from the words whether a person has finished.

A language model knows from the words alone where a turn can end (TurnGPT: Ekstedt & Skantze 2020, "TurnGPT: a
Transformer-based Language Model for Predicting Turn-taking in Spoken Dialog", arXiv:2010.10874). The transcript's full
stop says little: Whisper writes one after most inputs, finished or not.
"""

import re
from pathlib import Path

import numpy as np

from voicechat_serve.generation.chat_tokenizer import ChatTokenizer

SENTENCE_END_MODEL = "smollm2-135m-instruct-int8"
"""The asset that classifies in a service."""

MOST_CHARACTERS = 300
"""The most characters to read: earlier words do not matter."""

FULL_STOP = re.compile(r"[.?!](?!\.)")
PUNCTUATION = " .?!,;:…-"


class SentenceEnd:
    """The classifier.

    Args:
        folder: a chat model in CTranslate2's format, with its tokenizer.
    """

    def __init__(self, folder: Path):
        import ctranslate2  # imported here, because the driver and the API import this module only for its name

        self.tokenizer = ChatTokenizer(folder)
        # One thread: with two, which wait for each other beside Whisper's, a sentence takes 69 ms instead of 32.
        self.model = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=1)
        self.before = self.begun_message("")
        """The tokens before every message; computed once."""
        tokens = ((id, self.tokenizer.decode([id])) for id in range(self.tokenizer.size))
        end_ids = self.tokenizer.end_ids
        self.final_ids = np.array([id for id, text in tokens if id in end_ids or FULL_STOP.match(text)])

    def probability(self, words: str) -> float:
        """Return the probability, 0 to 1, that a sentence or the whole message ends after the words. Takes 32 ms per
        sentence.

        Args:
            words: a person's words so far; the punctuation at their end is ignored.
        """
        prompt = self.begun_message(words.rstrip(PUNCTUATION)[-MOST_CHARACTERS:])
        rest = prompt[len(self.before) :]
        if not rest:
            return 0.0
        (result,) = self.model.generate_batch(
            [rest],
            static_prompt=self.before,
            max_length=1,
            include_prompt_in_result=False,
            return_logits_vocab=True,
        )
        logits_v = np.array(result.logits[0][0], np.float32).ravel()
        weights_v = np.exp(logits_v - logits_v.max())
        return float(weights_v[self.final_ids].sum() / weights_v.sum())

    def begun_message(self, words: str) -> list[str]:
        """Return the tokens of a conversation's first message up to its words, as if more words followed."""
        ids = self.tokenizer.encode_chat([{"role": "user", "content": words}])
        end = max(place for place, id in enumerate(ids) if id in self.tokenizer.end_ids)
        return [self.tokenizer.tokenizer.id_to_token(id) or "" for id in ids[:end]]
