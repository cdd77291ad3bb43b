"""Rows of the cache: whatever requests come and go, each row holds its own tokens and what it took over is right."""

from hypothesis import given, settings
from hypothesis import strategies as st

from voicechat_serve.generation.engines.slots import LEAST_COPIED, Slots, common_length


class Tape:
    """A cache that holds token ids with the adapters that read them, where a real one holds their states."""

    def __init__(self, slots: int):
        self.slots = slots
        self.rows = [[None] * 200 for _ in range(slots)]

    def copy(self, source, target, length):
        self.rows[target][:length] = self.rows[source][:length]

    def swap(self, one, other, length):
        self.rows[one][:length], self.rows[other][:length] = self.rows[other][:length], self.rows[one][:length]

    def keep(self, row, length):
        return length


def states(row, token_ids) -> list[tuple[int, int]]:
    return [(row.adapter, token_id) for token_id in token_ids]


def write(slots: Slots, row, token_ids) -> None:
    place, start = slots.rows.index(row), len(row.token_ids)
    slots.cache.rows[place][start : start + len(token_ids)] = states(row, token_ids)
    row.token_ids.extend(token_ids)


prompts = st.builds(
    lambda base, length, tail: [base] * length + tail,
    st.integers(0, 2),
    st.integers(0, 40),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
actions = st.lists(st.tuples(st.sampled_from(["take", "step", "release"]), st.integers(0, 9), prompts), max_size=60)


@given(actions=actions)
@settings(max_examples=200, deadline=None)
def test_every_row_holds_its_own_tokens(actions):
    slots = Slots(Tape(3))
    texts: dict[int, list[int]] = {}
    for action, choice, prompt in actions:
        if action == "take":
            full = len(slots.decoding) + len(slots.filling) == 3
            adapter = choice % 3
            row = slots.take(prompt, adapter)
            assert (row is None) == full
            if row is not None:
                assert row.token_ids == prompt[: len(row.token_ids)]
                assert len(row.token_ids) < len(prompt)
                assert row.adapter == adapter
                write(slots, row, prompt[len(row.token_ids) :])
                texts[id(row)] = list(prompt)
                if choice % 2:
                    slots.begin_decoding(row)
        elif action == "step":
            for row in slots.decoding:
                write(slots, row, [choice])
                texts[id(row)].append(choice)
        elif slots.decoding or slots.filling:
            held = [*slots.decoding, *slots.filling]
            slots.release(held[choice % len(held)])
        assert slots.rows[: len(slots.decoding)] == slots.decoding
        for place, row in enumerate(slots.rows):
            assert slots.cache.rows[place][: len(row.token_ids)] == states(row, row.token_ids)
        for row in [*slots.decoding, *slots.filling]:
            assert row.token_ids == texts[id(row)]


def test_a_next_turn_goes_on_in_the_row_of_the_last():
    slots = Slots(Tape(2))
    row = slots.take([1, 2, 3])
    write(slots, row, [1, 2, 3, 4, 5])
    slots.begin_decoding(row)
    slots.release(row)
    assert slots.take([1, 2, 3, 4, 5, 6]).token_ids == [1, 2, 3, 4, 5]


def test_a_shared_beginning_is_copied_from_a_row_that_still_decodes():
    slots = Slots(Tape(2))
    row = slots.take([7] * 30)
    write(slots, row, [7] * 30)
    slots.begin_decoding(row)
    assert slots.take([7] * 20 + [8]).token_ids == [7] * 20
    assert row.token_ids == [7] * 30


def test_a_short_shared_beginning_is_read_again():
    slots = Slots(Tape(2))
    row = slots.take([7] * 9)
    write(slots, row, [7] * 9)
    slots.begin_decoding(row)
    assert LEAST_COPIED > 8
    assert slots.take([7] * 9 + [8]).token_ids == []


@given(st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6))
def test_common_length(one, other):
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length in (len(one), len(other))
