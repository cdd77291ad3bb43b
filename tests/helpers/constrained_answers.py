"""Answers of a model that knows nothing: random tokens, of those that a grammar allows."""

import numpy as np

from voicechat_serve.generation.engines.constraint import Grammars


def written(grammars: Grammars, grammar: str, room: int, seed: int, begin: str = "") -> tuple[str, bool]:
    """Return an answer, and whether it is complete.

    Args:
        grammars: of the model's vocabulary.
        grammar: of the answer.
        room: the most tokens.
        seed: for the choice of tokens.
        begin: what the answer begins with.
    """
    generator = np.random.default_rng(seed)
    constraint, ids = grammars.start(grammar), list[int]()
    given = grammars.tokens(begin)
    words_w = np.zeros((grammars.tokenizer.vocab_size + 31) // 32, np.int32)
    while len(ids) < room and not constraint.is_complete:
        constraint.allow(words_w)
        allowed = np.flatnonzero(np.unpackbits(words_w.view(np.uint8), bitorder="little"))
        token_id = given[len(ids)] if len(ids) < len(given) else int(generator.choice(allowed))
        assert token_id in allowed
        ids.append(constraint.accept(token_id, room - len(ids) - 1))
        constraint.require_valid()
    if ids and ids[-1] in grammars.tokens.end_ids:
        ids.pop()
    return b"".join(grammars.tokens.tokens[token_id] for token_id in ids).decode(), constraint.is_complete
