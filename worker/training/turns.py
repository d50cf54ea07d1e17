"""The assistant turns of a conversation, found in its rendered text without searching for markers.

A template with `{% generation %}` marks says itself what the model writes. For any other, a turn is
what the template adds for it: it begins where the rendering of the turns before it, with the header
of an assistant turn, ends; and it ends where the rendering of the turns up to it ends. So a message
that contains the template's own markers cannot move a boundary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from app.domain.rows import BadRow, ChatRow
from worker.training.templates import Spans, Template


@dataclass(frozen=True)
class FoundTurns:
    """A conversation as text: its targets, the turns left out, and how many do not end."""

    text: str
    spans: Spans
    left_out: Spans
    num_without_end: int


class Conversation:
    """One conversation under one template."""

    def __init__(self, row: ChatRow, template: Template) -> None:
        self._row = row
        self._messages = [turn.for_template() for turn in row.messages]
        self._template = template
        self._assistant = [n for n, turn in enumerate(row.messages) if turn.role == "assistant"]

    def find_turns(self) -> FoundTurns:
        """Find the targets.

        Raises:
            BadRow: The template refuses the conversation, or a turn to learn cannot be told apart.
        """
        whole, marks = self._template.text_and_marks(self._messages, self._row.tools)
        if marks is not None:
            return self._by_marks(whole, marks)
        spans = [self._span(index, whole) for index in self._assistant]
        return self._found(whole, spans)

    def _by_marks(self, whole: str, marks: Spans) -> FoundTurns:
        if len(marks) == len(self._assistant):
            ended = map(self._with_end, self._assistant, marks, [whole] * len(marks))
            return self._found(whole, ended)
        if any(turn.is_left_out for turn in self._row.messages):
            raise BadRow(
                "template_marks",
                f"the chat template marks {len(marks)} stretches as generated for"
                f" {len(self._assistant)} assistant turns, so turns of weight 0 cannot be told"
                " apart; give as dataset.chat_template one with a generation block per turn",
            )
        return FoundTurns(whole, marks, (), self._num_without_end(whole, marks))

    def _with_end(self, index: int, mark: tuple[int, int], whole: str) -> tuple[int, int]:
        """Add the end-of-turn token to a mark that stops short of it, as many templates' do."""
        start, end = mark
        if self._template.ends_turn(whole[start:end]):
            return mark
        try:
            until = len(self._until(index, whole).rstrip())
        except BadRow:
            return mark
        is_one_token = whole[end:until].strip() in self._template.end_marks
        return (start, until) if is_one_token else mark

    def _found(self, whole: str, spans: Iterable[tuple[int, int]]) -> FoundTurns:
        targets: list[tuple[int, int]] = []
        left_out: list[tuple[int, int]] = []
        for index, span in zip(self._assistant, spans, strict=True):
            (left_out if self._row.messages[index].is_left_out else targets).append(span)
        return FoundTurns(
            whole, tuple(targets), tuple(left_out), self._num_without_end(whole, targets)
        )

    def _num_without_end(self, whole: str, spans: Iterable[tuple[int, int]]) -> int:
        return sum(not self._template.ends_turn(whole[start:end]) for start, end in spans)

    def _span(self, index: int, whole: str) -> tuple[int, int]:
        try:
            start = self._start(index, whole)
            end = self._end(index, start, whole)
        except BadRow:
            if not self._row.messages[index].is_left_out:
                raise
            # It has to stay out, and nobody knows where it is: so only the targets are learned.
            return 0, len(whole)
        return start, end

    def _start(self, index: int, whole: str) -> int:
        if index > 0 and self._template.knows_generation_prompts(self._row.tools):
            try:
                before = self._text(index, add_generation_prompt=True)
            except BadRow:  # a template may want a user turn first
                before = None
            if before is not None and whole.startswith(before):
                return len(before)
        # The header of the turn is what two turns of different contents have in common.
        turns = [
            [*self._messages[:index], {"role": "assistant", "content": text}] for text in ("a", "b")
        ]
        one, other = (self._template.text(turn, self._row.tools) for turn in turns)
        header = one[: sum(takewhile(bool, (a == b for a, b in zip(one, other, strict=False))))]
        if not whole.startswith(header):
            raise self._rewrites(index)
        return len(header)

    def _end(self, index: int, start: int, whole: str) -> int:
        until = self._until(index, whole)
        # Whitespace that the template puts after the end-of-turn token is not the model's to learn.
        ended = until.rstrip()
        if whole.startswith(until):
            if len(ended) < start:
                raise self._rewrites(index)
            return len(ended)
        # The template writes the last turn in another way. If the turn's own text follows its
        # header all the same, and an end-of-turn token follows that text, nothing is in doubt.
        content = str(self._messages[index]["content"]).strip()
        begin = len(whole) - len(whole[start:].lstrip())
        end = begin + len(content)
        if self._row.messages[index].tool_calls or whole[begin:end] != content:
            raise self._rewrites(index)
        marks = self._template.end_marks
        mark = next((mark for mark in marks if ended.endswith(content + mark)), "")
        return end + len(mark) if whole.startswith(mark, end) else end

    def _until(self, index: int, whole: str) -> str:
        return whole if index == len(self._messages) - 1 else self._text(index + 1)

    def _text(self, num_messages: int, **options: Any) -> str:
        return self._template.text(self._messages[:num_messages], self._row.tools, **options)

    def _rewrites(self, index: int) -> BadRow:
        return BadRow(
            "template_rewrites_turns",
            f"the model's chat template writes the assistant turn messages[{index}] differently"
            " when turns follow it (templates of reasoning models do), so its tokens cannot be told"
            " apart; split the conversation so that this turn comes last, give it weight 0, or give"
            " another dataset.chat_template",
        )
