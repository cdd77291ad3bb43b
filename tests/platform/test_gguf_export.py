"""A GGUF of ours in the real llama.cpp: equal logits, equal tokens, and the model's own settings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_file import opened
from model_variants import FOLDABLE, name_of, random_model
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.models.folding import fold
from voicechat_platform.models.gguf_export import write_gguf

CHARACTERS = "".join(map(chr, range(32, 75))) + "\n\tÃéπ€你🙂"


def characters():
    return make_tokenizer("characters", 0, CHARACTERS)


@pytest.mark.parametrize("variant", FOLDABLE, ids=name_of)
def test_llama_cpp_computes_the_same_logits(variant, tmp_path):
    tokenizer = characters()
    folded = fold(random_model(variant, len(tokenizer)))
    write_gguf(folded, tokenizer, tmp_path / "model.gguf")
    ids = torch.randint(0, len(tokenizer), (1, 40))
    with torch.no_grad():
        expected = folded(ids).logits[0]
    with opened(tmp_path / "model.gguf") as model:
        found = model.logits(ids[0].tolist())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
"""Characters without Unicode's newest letters, which tokenizers knows and llama.cpp does not yet."""

HOSTILE = [
    "",
    " ",
    "   \n\n\t  two   spaces \r\n",
    "It's 1234567 o'clock, 3.14 -- don't you'LL WE'RE",
    "naïve café, Ã©, πολύ, 你好世界, 한국어, русский",
    "🙂🙃👩‍👩‍👧 e\u0301 \u200b\u00a0\u2028\ufeff",
    "\x00\x01\x7f ÿĀġĊ ▁ <|endoftext|> [UNUSED 3]",
    "١٢٣ Ⅷ ½ ²",
]


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    text = "It's the year 1234, naïve café. 你好世界 don't  go\n\n" * 50
    yield from both(make_tokenizer("byte_pairs", 400, text), tmp_path_factory)


@pytest.fixture(scope="module")
def by_character(tmp_path_factory):
    yield from both(characters(), tmp_path_factory)


def both(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(fold(random_model({}, len(tokenizer))), tokenizer, path)
    with opened(path) as model:
        yield tokenizer, model


@pytest.mark.parametrize("kind", ["byte_pairs", "by_character"])
@given(st.one_of(st.sampled_from(HOSTILE), st.text(ASSIGNED), st.text(st.sampled_from(CHARACTERS))))
def test_llama_cpp_gives_the_same_tokens(kind, request, text):
    tokenizer, model = request.getfixturevalue(kind)
    ids = tokenizer.encode(text)
    assert model.encode(text) == ids
    assert model.decode(ids) == tokenizer.decode(ids)
