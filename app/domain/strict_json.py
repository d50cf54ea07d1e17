"""JSON that says everything once: a key that an object holds twice is an error, not a guess."""

from typing import Any


class DuplicateKey(ValueError):
    """An object has a key twice, and readers of JSON do not agree on which one counts."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key} is given twice")
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; the `object_pairs_hook` of `json.loads`.

    Raises:
        DuplicateKey: A key is in it twice.
    """
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise DuplicateKey(key)
        seen.add(key)
    raise AssertionError("fewer keys than pairs, and none of them twice")
