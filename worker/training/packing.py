"""Packing: which rows fill a sequence of max_length together, by best fit, longest first."""

from collections.abc import Sequence

import numpy as np

_WORD_BITS = 64


def pack(lengths: np.ndarray, *, capacity: int) -> Sequence[tuple[int, ...]]:
    """Share rows out over as few packs of at most `capacity` tokens as best fit needs.

    Each row, longest first, goes where the least room is left over; equal ones are taken in the
    order of the rows, so equal lengths always give equal packs. Takes O(n log capacity).

    Args:
        lengths: Tokens of each row, none above `capacity`.
        capacity: Most tokens of a pack.

    Returns:
        Row numbers of each pack, ascending; packs in the order of their first row.

    Source:
        Best-fit decreasing: Johnson 1974, "Fast algorithms for bin packing".
    """
    assert not len(lengths) or int(lengths.max()) <= capacity, "a row is longer than a pack"
    packs: list[list[int]] = []
    open_packs: dict[int, list[int]] = {}  # room left -> packs with that room
    rooms = _SortedSet(capacity)
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        room = rooms.first_from(length)
        if room is None:
            room, pack_number = capacity, len(packs)
            packs.append([])
        else:
            pack_number = open_packs[room].pop()
            if not open_packs[room]:
                rooms.remove(room)
        packs[pack_number].append(row)
        left = room - length
        if left:
            open_packs.setdefault(left, []).append(pack_number)
            rooms.add(left)
    return sorted(tuple(sorted(rows)) for rows in packs)


class _SortedSet:
    """Numbers up to a limit, as bits of words; a word of the level above marks non-empty words.

    Args:
        limit: Largest number that can be in the set.
    """

    def __init__(self, limit: int) -> None:
        self._levels: list[list[int]] = []
        size = limit + 1
        while True:
            size = -(-size // _WORD_BITS)
            self._levels.append([0] * size)
            if size == 1:
                return

    def add(self, number: int) -> None:
        for level in self._levels:
            number, bit = divmod(number, _WORD_BITS)
            level[number] |= 1 << bit

    def remove(self, number: int) -> None:
        for level in self._levels:
            number, bit = divmod(number, _WORD_BITS)
            level[number] &= ~(1 << bit)
            if level[number]:
                return

    def first_from(self, number: int) -> int | None:
        """Return the smallest member that is not below `number`."""
        for height, level in enumerate(self._levels):
            word, bit = divmod(number, _WORD_BITS)
            if word < len(level) and (higher := level[word] >> bit):
                return self._descend(height, number + _lowest_bit(higher))
            number = word + 1  # nothing left in this word: look for the next non-empty one
        return None

    def _descend(self, height: int, number: int) -> int:
        for level in reversed(self._levels[:height]):
            number = number * _WORD_BITS + _lowest_bit(level[number])
        return number


def _lowest_bit(word: int) -> int:
    return (word & -word).bit_length() - 1
