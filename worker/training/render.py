"""One row becomes the text that the model sees, with the stretches of it that are targets."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from app.domain import instructions
from app.domain.rows import (
    AlpacaRow,
    BadRow,
    ChatRow,
    PromptCompletionRow,
    Row,
    TextRow,
    TokenizedRow,
)
from worker.training.templates import Spans, Template
from worker.training.turns import Conversation


@dataclass(frozen=True)
class RenderedRow:
    """A row as text, and stretches of it as (start, end) in characters.

    Args:
        spans: The targets.
        left_out: What `train_on_inputs` may not make a target: turns of weight 0.
        is_chat: The template wrote it; other texts still get their begin and end tokens.
        num_turns_without_end: Assistant turns to learn that do not end in a special token.
        tokens: A row that came as tokens; its text is empty.
    """

    line: int
    text: str
    spans: Spans = ()
    left_out: Spans = ()
    is_chat: bool = False
    num_turns_without_end: int = 0
    tokens: TokenizedRow | None = None

    def ends_a_turn(self, marks: tuple[str, ...]) -> bool:
        """Tell whether some assistant turn ends in one of `marks`."""
        return any(self.text[start:end].rstrip().endswith(marks) for start, end in self.spans)


def render(
    line: int, row: Row, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None
) -> RenderedRow:
    """Write a row as the text that the model sees.

    Args:
        chat_template: Jinja source to use instead of the tokenizer's own (`dataset.chat_template`).

    Raises:
        BadRow: This row cannot be rendered; `reason` and `message` say why, without the line. No
            chat template where one is needed (`no_chat_template`), the template refuses it
            (`template_refuses`), the template changes earlier text when a turn is added, so that
            the tokens of an assistant turn cannot be told (`template_rewrites_turns`), or a token
            id that the tokenizer does not have (`unknown_token_id`).
    """
    match row:
        case ChatRow():
            return _chat(line, row, Template(tokenizer, chat_template))
        case AlpacaRow():
            template = Template(tokenizer, chat_template)
            if template.exists:
                return _chat(line, instructions.as_chat(row), template)
            return _completion(line, instructions.as_prompt(row))
        case PromptCompletionRow():
            return _completion(line, row)
        case TextRow():
            return RenderedRow(line, row.text, ((0, len(row.text)),))
        case TokenizedRow():
            _require_known(row, len(tokenizer))
            return RenderedRow(line, "", tokens=row)


def _chat(line: int, row: ChatRow, template: Template) -> RenderedRow:
    found = Conversation(row, template).find_turns()
    return RenderedRow(
        line,
        found.text,
        found.spans,
        found.left_out,
        is_chat=True,
        num_turns_without_end=found.num_without_end,
    )


def _completion(line: int, row: PromptCompletionRow) -> RenderedRow:
    text = row.prompt + row.completion
    return RenderedRow(line, text, ((len(row.prompt), len(text)),))


def _require_known(row: TokenizedRow, num_tokens: int) -> None:
    largest = max(row.input_ids, default=0)
    if largest >= num_tokens:
        raise BadRow(
            "unknown_token_id",
            f"token id {largest} is not one of the model's {num_tokens}; tokenize the data with"
            " this model's tokenizer",
        )
