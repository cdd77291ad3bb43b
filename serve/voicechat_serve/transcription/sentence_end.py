"""The end-of-turn classifier: a chat model predicts from the words whether a person has finished.

A language model knows from the words alone where a turn can end (TurnGPT: Ekstedt & Skantze 2020, "TurnGPT: a
Transformer-based Language Model for Predicting Turn-taking in Spoken Dialog", arXiv:2010.10874). The transcript's full
stop says little: Whisper writes one after most inputs, finished or not.
"""

import re
import threading
from pathlib import Path

import numpy as np

from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.slots import common_length

SENTENCE_END_MODEL = "smollm2-135m-instruct"
"""The packaged chat model that classifies in a service."""

CONTEXT = 1536
"""Positions in the cache: of MOST_CHARACTERS, each may take four tokens, and the chat template takes a few."""

MOST_CHARACTERS = 300
"""The most characters to read: earlier words do not matter."""

FULL_STOP = re.compile(r"[.?!](?!\.)")
PUNCTUATION = " .?!,;:…-"


class SentenceEnd:
    """The classifier. It computes on the calling thread; several threads take turns.

    Args:
        path: a chat model, as a GGUF file.
    """

    def __init__(self, path: Path):
        # Imported here, because the driver and the API import this module only for its name.
        from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder

        self.tokenizer = ChatTokenizer(path)
        # One thread: two would wait for each other beside Whisper's.
        self.decoder = LlamaCppDecoder(path, slots=1, context=CONTEXT, threads=1)
        self.turn = threading.Lock()
        self.read: list[int] = []
        """The tokens in the cache."""
        vocabulary, end_ids = self.tokenizer.vocabulary, self.tokenizer.end_ids
        tokens = ((id, vocabulary.decode([id])) for id in range(vocabulary.size))
        self.final_ids = np.array([id for id, text in tokens if id in end_ids or FULL_STOP.match(text)])

    def probability(self, words: str) -> float:
        """Return the probability, 0 to 1, that a sentence or the whole message ends after the words. Takes 32 ms per
        sentence.

        Args:
            words: a person's words so far; the punctuation at their end is ignored.
        """
        words = words.rstrip(PUNCTUATION)[-MOST_CHARACTERS:]
        if not words:
            return 0.0
        with self.turn:
            logits_v = self.logits(self.begun_message(words))
        weights_v = np.exp(logits_v - logits_v.max())
        return float(weights_v[self.final_ids].sum() / weights_v.sum())

    def logits(self, ids: list[int]) -> np.ndarray:
        """Return the logits (v,) after these tokens; the cache has most of them, because words come one by one."""
        length = self.decoder.keep(0, common_length(self.read, ids[:-1]))
        self.read = []  # if the decoder fails, nothing is known
        import torch

        logits_1v = self.decoder.prefill(0, torch.tensor(ids[length:]), length)
        self.read = ids
        return logits_1v[0].numpy().copy()

    def begun_message(self, words: str) -> list[int]:
        """Return the tokens of a conversation's first message up to its words, as if more words followed."""
        ids = self.tokenizer.encode_chat([{"role": "user", "content": words}])
        end = max(place for place, id in enumerate(ids) if id in self.tokenizer.end_ids)
        return ids[:end]
