"""Tokens become text as they come, in complete characters."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_INCOMPLETE = "�"
# No character has more bytes, so what is still incomplete after as many tokens stays so.
_MOST_BYTES = 4
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class GrowingText:
    """The text of one answer.

    Args:
        tokenizer: The model's tokenizer.
        before: Tokens before the answer; with them a first word keeps the space before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)
        self._prefix = 0
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        """Add a token; returns the new complete characters, none for special tokens."""
        self._ids.append(token)
        text = self._text(len(self._ids))
        is_cut = text.endswith(_INCOMPLETE) and len(self._ids) - self._shown < _MOST_BYTES
        return "" if is_cut else self._take(text)

    def flush(self) -> str:
        """Return what was held back as incomplete, because no more tokens come."""
        return self._take(self._text(len(self._ids)))

    def _take(self, text: str) -> str:
        new = text[len(self._text(self._shown)) :]
        # Tokens mean the same with any others before them but the first; so few are enough.
        self._prefix, self._shown = self._shown, len(self._ids)
        return new

    def _text(self, end: int) -> str:
        text: Any = self._tokenizer.decode(
            self._ids[self._prefix : end],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> tuple[str, tuple[int, ...]]:
    """Return a token's text and its UTF-8 bytes; a part of a character has bytes of its own."""
    raw: Any = tokenizer.convert_ids_to_tokens(token)
    text: Any = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if isinstance(raw, str) and _INCOMPLETE in text:
        if one := _BYTE_TOKEN.fullmatch(raw):
            return text, (int(one[1], 16),)
        if all(character in _BYTES for character in raw):
            return text, tuple(_BYTES[character] for character in raw)
    return text, tuple(text.encode())
