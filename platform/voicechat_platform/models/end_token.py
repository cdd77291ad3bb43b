"""An end token for a tokenizer that has none, because stock engines require one.

Our models of characters and of trained byte pairs read one long text, and no token ends it.
"""

import json

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

IMPOSSIBLE = "ÿ"
"""Byte 255 in GPT-2's printable alphabet. UTF-8 has no such byte, so a trained model never predicts it."""

END_OF_TEXT = "<|endoftext|>"


def end_token_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the tokenizer's end token, or the token that ends a text by mistake least often.

    With byte pairs, this is the impossible byte. Each character of a model of characters occurs in its text, so there
    it is the one that the model predicts most rarely.
    """
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    if has_bytes(tokenizer):
        return tokenizer.convert_tokens_to_ids(IMPOSSIBLE)
    return rarest_token(model, len(tokenizer))


def has_bytes(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the tokens are byte pairs in GPT-2's alphabet, not characters."""
    return tokenizer.backend_tokenizer.pre_tokenizer is not None and IMPOSSIBLE in tokenizer.get_vocab()


@torch.no_grad()
def rarest_token(model: PreTrainedModel, count: int) -> int:
    """Return the token with the smallest share of a long text, by the model's predictions after a single token."""
    tokens = torch.arange(count, device=model.device)
    next_vv = model(tokens[:, None]).logits[:, -1, :count].double().softmax(-1)
    share_v = torch.full_like(next_vv[0], 1 / count)
    for _ in range(50):
        share_v = share_v @ next_vv
    return int(share_v.argmin())


def with_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer with bos, eos and unk tokens, all of them the same. It encodes every text as before, except
    that the text "<|endoftext|>" may become a token.

    The impossible byte gets this name, because its letter of the alphabet is also a letter of real texts.
    """
    if tokenizer.eos_token is not None:
        return tokenizer
    token = tokenizer.convert_ids_to_tokens(end_token_id(model, tokenizer))
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if has_bytes(tokenizer):
        vocabulary = described["model"]["vocab"]
        vocabulary[END_OF_TEXT] = vocabulary.pop(IMPOSSIBLE)
        token = END_OF_TEXT
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token=token,
        eos_token=token,
        unk_token=token,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
