"""The header of a GGUF file: what it says, and that no damage does more than give one error that names the file."""

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from small_gguf import KEYS, TENSORS, small_gguf
from voicechat_platform.assets import CATALOGUE, packaged_files
from voicechat_platform.errors import InputError
from voicechat_platform.gguf_file import GGUFFile, read_gguf

SMALL = small_gguf()
HEADER_OF_PACKAGED = 1 << 21
"""More than its keys and tensors take; bytes."""


@pytest.fixture(scope="module")
def packaged() -> Path:
    files = packaged_files(CATALOGUE["smollm2-135m-instruct"])
    assert files
    return files[0]


def problem_of(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        read_gguf(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_the_packaged_model_is_described(packaged):
    found = read_gguf(packaged)
    assert found.chat_template is not None
    assert "<|im_start|>" in found.chat_template
    assert found == GGUFFile(
        path=packaged,
        architecture="llama",
        name="Smollm2 135M 8k Lc100K Mix1 Ep2",
        context=8192,
        layers=30,
        vocabulary=49152,
        parameters=134_515_008,
        size_bytes=packaged.stat().st_size,
        file_type="Q4_1",
        chat_template=found.chat_template,
        tokenizer="gpt2",
    )


def test_what_a_file_does_not_say_is_seen_in_its_tensors_and_name(tmp_path):
    path = tmp_path / "mine.gguf"
    left_out = ("general.name", "general.file_type", "tokenizer.chat_template")
    path.write_bytes(small_gguf({key: value for key, value in KEYS.items() if key not in left_out}))
    found = read_gguf(path)
    assert (found.name, found.file_type, found.chat_template) == ("mine", "F32", None)
    assert found.parameters == 40


HUGE = 2**62
WRONG = {
    "no GGUF": (b"PK\3\4" + SMALL[4:], "is not a GGUF file"),
    "empty": (b"", "is not a GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + SMALL[8:], "big-endian"),
    "a future version": (small_gguf(version=4), "version 4"),
    "too many keys": (SMALL[:16] + struct.pack("<Q", HUGE) + SMALL[24:], "the number of keys is 4,611,6"),
    "too many tensors": (SMALL[:8] + struct.pack("<Q", HUGE) + SMALL[16:], "the number of tensors is 4,611,6"),
    "a long key": (SMALL[:24] + struct.pack("<Q", HUGE) + SMALL[32:], "the length of a key"),
    "its last byte": (SMALL[: len(SMALL) - 32 * 3], "cut off: its weights need"),
    "only a header": (SMALL[:200], "cut off in its header"),
    "no architecture": (small_gguf({**KEYS, "general.architecture": ""}), "does not name an architecture"),
    "an adapter": (small_gguf({**KEYS, "general.type": "adapter"}), "general.type is 'adapter'"),
    "no tokenizer": (small_gguf({**KEYS, "tokenizer.ggml.model": "none"}), "has no tokenizer"),
    "tokens that are numbers": (small_gguf({**KEYS, "tokenizer.ggml.tokens": ("u32", [1])}), "has no tokenizer"),
    "types of other tokens": (small_gguf({**KEYS, "tokenizer.ggml.token_type": ("i32", [1])}), "each of the 4 tokens"),
    "a token that is none": (small_gguf({**KEYS, "tokenizer.ggml.eos_token_id": ("u32", 4)}), "eos_token_id is 4"),
    "no context": (small_gguf({**KEYS, "llama.context_length": ("u32", 0)}), "llama.context_length is 0"),
    "half a layer": (small_gguf({**KEYS, "llama.block_count": ("f32", 0.5)}), "llama.block_count is 0.5"),
    "a name that is a number": (small_gguf({**KEYS, "general.name": ("u32", 1)}), "general.name is not a text"),
    "an odd alignment": (small_gguf({**KEYS, "general.alignment": ("u32", 48)}), "not a power of two"),
    "no tensors": (small_gguf(tensors={}), "holds no weights"),
    "a shape": (small_gguf(tensors={"w": ([2**40, 2**40], 0, 32)}), "its weights need"),
    "no rows": (small_gguf(tensors={"w": ([8, 0], 0, 0)}), "the shape [8, 0]"),
    "half a block": (small_gguf(tensors={"w": ([48], 2, 32)}), "the shape [48]"),
    "five dimensions": (small_gguf(tensors={"w": ([1] * 5, 0, 4)}), "5 dimensions"),
    "a type": (small_gguf(tensors={"w": ([8], 4, 32)}), "the type 4, which is not known"),
    "data elsewhere": (small_gguf(tensors={"w": ([16], 0, 32), **TENSORS}), "begin at 32 and not at 64"),
    "a part by another name": (small_gguf({**KEYS, "split.count": ("u32", 3)}), "one of 3 parts"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said(tmp_path, kind):
    content, problem = WRONG[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert problem in problem_of(path)


def test_the_same_key_or_tensor_twice_is_damage(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf({**KEYS, "llama.block_cound": ("u32", 2)}).replace(b"block_cound", b"block_count"))
    assert "the key 'llama.block_count' is there twice" in problem_of(path)
    path.write_bytes(small_gguf(tensors={"a": ([8], 0, 32), "b": ([8], 0, 32)}).replace(b"\0b\1", b"\0a\1"))
    assert "the tensor 'a' is there twice" in problem_of(path)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, problem in [("pipe.gguf", "is not a file"), ("", "is not a file"), ("none.gguf", "No such file")]:
        assert problem in problem_of(tmp_path / path)


def test_a_split_model_is_read_whole_and_a_part_alone_is_refused(tmp_path):
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(small_gguf({**KEYS, "split.count": ("u32", 2)}))
    assert second.name in problem_of(first)
    second.write_bytes(small_gguf({"split.no": ("u32", 1)}))
    whole = read_gguf(first)
    assert (whole.parameters, whole.size_bytes) == (80, first.stat().st_size + second.stat().st_size)
    assert first.name in problem_of(second)
    second.write_bytes(second.read_bytes()[:-32])
    with pytest.raises(InputError, match="cut off"):
        read_gguf(first)


def read_or_refuse(path: Path) -> None:
    with contextlib.suppress(InputError):
        read_gguf(path)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, len(SMALL) - 1),
    new=st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([2**64 - 1, 2**63, 2**62, 2**32, 2**20, 10_000]).map(lambda n: struct.pack("<Q", n)),
    ),
    length=st.one_of(st.just(len(SMALL)), st.integers(0, len(SMALL))),
)
def test_no_bytes_do_more_than_give_an_error(tmp_path, place, new, length):
    path = tmp_path / "model.gguf"
    path.write_bytes((SMALL[:place] + new + SMALL[place + len(new) :])[:length])
    tracemalloc.start()
    try:
        read_or_refuse(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_packaged_file_cut_and_changed_at_many_places(packaged, tmp_path):
    """The weights are a hole in the file, because only the header is read."""
    path = tmp_path / "model.gguf"
    with packaged.open("rb") as file:
        header = file.read(HEADER_OF_PACKAGED)
    for cut in (0, 3, 8, 20, 100, 1_000, 5_000, 100_000, 900_000, HEADER_OF_PACKAGED):
        path.write_bytes(header[:cut])
        problem_of(path)
    ends = [40, 300, 900, 1_500, 2_000, 500_000, 800_000, 1_700_000, 1_800_000]
    for number, place in enumerate(place + step for place in ends for step in (0, 5)):
        changed = bytearray(header)
        changed[place : place + 8] = struct.pack("<Q", (2**64 - 1) >> (number * 7 % 60))
        path.write_bytes(changed)
        os.truncate(path, packaged.stat().st_size)
        read_or_refuse(path)
    path.write_bytes(header)
    os.truncate(path, packaged.stat().st_size - 1)
    assert "cut off: its weights need 98,362,432 bytes and it has 98,362,431" in problem_of(path)


def test_an_array_as_long_as_the_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf({"tokenizer.ggml.tokens": [""] * 1_000}))
    content = path.read_bytes().replace(struct.pack("<Q", 1_000), struct.pack("<Q", 4_000_001))
    path.write_bytes(content)
    os.truncate(path, 1 << 32)
    assert "the length of tokenizer.ggml.tokens is 4,000,001" in problem_of(path)
