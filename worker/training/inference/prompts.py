"""A question becomes tokens, written as training writes the turns before an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidInput
from app.domain.inference import ChatPrompt, TextPrompt
from app.domain.rows import BadRow
from worker.training.encode import first_token
from worker.training.templates import Template

_ROLES = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclass(frozen=True)
class Encoded:
    """What the model reads, and how it says that it is done.

    Args:
        ids: Tokens of the prompt.
        ends: Tokens that end the answer.
        before: Last tokens of a plain text that the answer continues, for the space between them.
    """

    ids: tuple[int, ...]
    ends: frozenset[int]
    before: tuple[int, ...] = ()


def encode(
    prompt: ChatPrompt | TextPrompt, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> Encoded:
    """Write a prompt as tokens.

    Args:
        prompt: The question.
        tokenizer: The model's tokenizer.
        ends: Tokens that end an answer whatever the template.

    Raises:
        InvalidInput: The chat template refuses the conversation, there is none, or nothing is left.
    """
    if isinstance(prompt, TextPrompt):
        first = first_token(tokenizer)
        ids = (*(() if first is None else (first,)), *_tokens(tokenizer, prompt.text))
        encoded = Encoded(ids, ends, before=ids[-4:])
    else:
        template = Template(tokenizer, prompt.chat_template)
        try:
            text = render(template, prompt.messages, prompt.tools)
        except BadRow as error:
            raise InvalidInput(error.message, param="messages", code=error.reason) from error
        ids = tuple(_tokens(tokenizer, text))
        encoded = Encoded(ids, ends | _end_of_turn(template, tokenizer))
    if not encoded.ids:
        param = "prompt" if isinstance(prompt, TextPrompt) else "messages"
        raise InvalidInput("the prompt has no tokens; give some text", param=param)
    return encoded


def render(
    template: Template, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> str:
    """Write a conversation up to where training puts the beginning of the next assistant turn.

    Raises:
        BadRow: There is no template, or it refuses the conversation.
    """
    header = None
    if template.knows_generation_prompts(tools):
        try:
            header = template.text(messages, tools, add_generation_prompt=True)
        except BadRow:
            # Some templates refuse what they would write in an answered conversation.
            header = None
    try:
        answered, marks = template.text_and_marks([*messages, _answer("a")], tools)
        other = template.text([*messages, _answer("b")], tools)
    except BadRow:
        if header is None:
            raise
        return header
    if marks and answered[marks[-1][0] : marks[-1][1]].lstrip().startswith("a"):
        return answered[: marks[-1][0]]
    if header is not None and answered.startswith(header):
        return header
    # Training takes what two turns of different contents have in common.
    same = takewhile(bool, (a == b for a, b in zip(answered, other, strict=False)))
    return answered[: sum(same)]


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer whatever the template: the model's and tokenizer's."""
    listed: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = listed if isinstance(listed, list | tuple) else [listed]
    return frozenset(each for each in (*ids, tokenizer.eos_token_id) if isinstance(each, int))


def _end_of_turn(template: Template, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the token that the template puts behind an assistant turn, if it is one token."""
    try:
        text = template.text(_ROLES, ()).rstrip()
    except BadRow:
        return frozenset()
    mark = next((mark for mark in template.end_marks if text.endswith(mark)), None)
    known: Any = None if mark is None else tokenizer.convert_tokens_to_ids(mark)
    return frozenset((known,)) if isinstance(known, int) else frozenset()


def _answer(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return encoded["input_ids"]
