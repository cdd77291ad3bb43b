"""Tokenizers. Each is a transformers fast tokenizer, and the checkpoint saves it."""

import hashlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from voicechat_platform.assets import locate
from voicechat_platform.training.recipe import TokenizerKind

TYPOGRAPHY = {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "..."}
"""Characters of keyboards and transcripts, and their plain spelling for a text that does not use them."""

# A conversation as a play: the person speaks as one character, the model answers as another. A speech has the form of
# the training text: it begins with a capital. A person's speech ends with a full stop (a transcript may have none). An
# empty line would end a speech, so it has none. The template omits the system's instructions: no speech of a play is
# one.
PLAY_TEMPLATE = """\
{%- macro speech(message) -%}
{%- set lines = message.content.splitlines() | map('trim') | select | join('\\n')SPELLING -%}
{{- lines[:1] | upper + lines[1:] -}}
{{- '.' if message.role == 'user' and lines[-1:].isalnum() else '' -}}
{%- endmacro -%}
{%- for message in messages if message.role != 'system' -%}
{{ ('MODEL' if message.role == 'assistant' else 'PERSON') + ':\\n' + speech(message) + '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'MODEL:\\n' }}{%- endif -%}"""
PLAY_STOPS = ["\n\n"]

PROSE_TEMPLATE = """\
{%- for message in messages if message.role != 'system' -%}{{ message.content + '\\n' }}{%- endfor -%}"""


def play_template(person: str, model: str, text: str) -> str:
    """Return the chat template of a model that was trained on a play.

    Args:
        person: the character of the user.
        model: the character that answers.
        text: the play; the template replaces typographic characters that it never uses.
    """
    spelling = "".join(
        f" | replace({typographic!r}, {plain!r})"
        for typographic, plain in TYPOGRAPHY.items()
        if typographic not in text and set(plain) <= set(text)
    )
    return PLAY_TEMPLATE.replace("SPELLING", spelling).replace("MODEL", model).replace("PERSON", person)


def make_tokenizer(kind: TokenizerKind, vocabulary_size: int, text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer for the text.

    Args:
        kind: "characters" (one token for each character of the text), "byte_pairs" (trained on the text) or "gpt2"
            (GPT-2's 50,257 byte pairs).
        vocabulary_size: for trained byte pairs; the other kinds have their own.
        text: the source of the characters, and the training text of the byte pairs.
    """
    if kind == "gpt2":
        folder = locate("gpt2-byte-pairs")
        return GPT2TokenizerFast(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    if kind == "characters":
        vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
        # Byte pairs without merges are characters. A character that never occurred has no token, and is omitted.
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
