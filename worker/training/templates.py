"""A chat template, as its tokenizer renders it, and the tokens that can end a turn."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from app.domain.rows import BadRow

Spans = tuple[tuple[int, int], ...]

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Inside of these the text is collected before it is put out, and marks there get wrong positions.
_COLLECTED = re.compile(
    r"\{%[-+]?\s*(?:macro|call|filter|set\s+\w+\s*[-+]?%\})"
    r".*?\{%[-+]?\s*end(?:macro|call|filter|set)\b",
    re.DOTALL,
)
# What a template raises on a conversation that it was not written for.
_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Template:
    """The chat template of a tokenizer, or the one that a job gives instead."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._given = source or tokenizer.chat_template
        self.end_marks = end_marks(tokenizer)

    @property
    def exists(self) -> bool:
        return bool(self._given)

    def text(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation.

        Raises:
            BadRow: There is no template, or it refuses the conversation.
        """
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def text_and_marks(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Spans | None]:
        """Render a conversation with the stretches that the template marks as generated.

        Returns:
            The text, and (start, end) in characters of each `{% generation %}` block in it; None
            where the template has no such block.

        Raises:
            BadRow: There is no template, or it refuses the conversation.
        """
        source = self._source(tools)
        if not has_marks(source):
            return self.text(messages, tools), None
        return self._render(messages, tools, return_assistant_tokens_mask=True)

    def knows_generation_prompts(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        return "add_generation_prompt" in self._source(tools)

    def ends_turn(self, text: str) -> bool:
        """Tell whether a turn's text ends in a token that can mean so."""
        return text.rstrip().endswith(self.end_marks)

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]], **options: Any
    ) -> tuple[str, Spans]:
        known: dict[str, Any] = {**self._tokenizer.special_tokens_map, **options}
        try:
            texts, marks = cast(Any, render_jinja_template)(
                conversations=[list(messages)],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._source(tools),
                **known,
            )
        except _REFUSALS as error:
            raise BadRow(
                "template_refuses", f"the model's chat template refuses the conversation: {error}"
            ) from error
        return texts[0], tuple(marks[0]) if marks else ()

    def _source(self, tools: Sequence[Mapping[str, Any]]) -> str:
        if isinstance(self._given, str):
            return self._given
        if not self._given:
            raise BadRow(
                "no_chat_template",
                "the model's tokenizer has no chat template to render the conversation with; give"
                " one as dataset.chat_template, or use an instruct model",
            )
        return self._tokenizer.get_chat_template(None, [dict(tool) for tool in tools] or None)


def end_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokens that can mean "end of turn": the special and the added ones."""
    return _end_marks(tokenizer)


@lru_cache(maxsize=4)
def _end_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    marks = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    return tuple(sorted(filter(str.strip, marks), key=len, reverse=True))


@lru_cache(maxsize=16)
def has_marks(source: str) -> bool:
    """Tell whether a template has generation marks whose positions can be trusted."""
    blocks = len(_GENERATION.findall(source))
    return blocks > 0 and len(_GENERATION.findall(_COLLECTED.sub("", source))) == blocks
