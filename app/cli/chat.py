"""The command that talks with a tuned model, beside its base model when asked to."""

import importlib
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import complete, output
from app.domain.errors import InvalidInput, LoradError, RateLimited, Unavailable

if TYPE_CHECKING:
    from app.cli.client import Client

app = typer.Typer()

_ASKED = "> "
# Two columns of this width still hold a sentence.
_LEAST_COLUMN = 38


@dataclass(frozen=True)
class Options:
    """What is sent with every question."""

    max_tokens: int | None
    temperature: float
    seed: int | None


@dataclass
class Voice:
    """One model in the chat, with what it was asked and what it said."""

    model: str
    turns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def body(self, question: str, options: Options) -> dict[str, object]:
        asked = {
            "max_completion_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        turns = [*self.turns, {"role": "user", "content": question}]
        return {"model": self.model, "messages": turns, **given}

    def remember(self, question: str, answer: str) -> None:
        """Keep a question with what was said to it, whole or not; silence is not kept."""
        if answer:
            self.turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="JOB[:STEP]",
            help="Job, with a step, latest or best behind a colon; or any name of a model.",
            show_default=False,
            autocompletion=complete.jobs_and_steps,
        ),
    ],
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer too.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this once and end.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens.", show_default=False)
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 takes the most likely token each time.")
    ] = 0.7,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same answer.", show_default=False)
    ] = None,
) -> None:
    """Talk with a tuned model; Ctrl-C ends an answer, twice the chat, as does Ctrl-D."""
    names = [model, _base_of(model)] if base else [model]
    first = [] if system is None else [{"role": "system", "content": system}]
    voices = [Voice(name, list(first)) for name in names]
    options = Options(max_tokens, temperature, seed)
    if prompt is not None:
        _exchange(voices, prompt, options)
        return
    for question in _questions():
        try:
            _exchange(voices, question, options)
        except KeyboardInterrupt:
            output.say("\n(the answer was ended; Ctrl-C again ends the chat)")
        except (Unavailable, RateLimited) as error:
            if not sys.stdin.isatty():
                raise
            output.report(error)


def _base_of(model: str) -> str:
    """Name the base model as the job of a model loads it.

    Raises:
        InvalidInput: It is a base model itself.
    """
    from app.domain import model_names  # here, so that `lorad --help` stays quick

    tuned = model_names.parse(model)
    if tuned is None:
        raise InvalidInput(f"{model} is a base model itself; leave out --base", param="--base")
    return f"{tuned.job_id}:base"


def _questions() -> Iterator[str]:
    """Yield what the user types, or the lines of a pipe."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            importlib.import_module("readline")  # gives `input` its history and editing
    while True:
        try:
            line = input(_ASKED if is_terminal else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _exchange(voices: Sequence[Voice], question: str, options: Options) -> None:
    """Ask every voice and show the answers while they come.

    Raises:
        LoradError: One does not answer.
    """
    if len(voices) == 2 and _width() >= 2 * _LEAST_COLUMN:
        _side_by_side(voices, question, options)
        return
    for voice in voices:
        if len(voices) > 1:
            output.heading(f"--- {voice.model}")
        said: list[str] = []
        try:
            with _connect() as client, closing(_answer(client, voice, question, options)) as pieces:
                _print(_kept(pieces, said))
        finally:
            voice.remember(question, "".join(said))


def _connect() -> "Client":
    # Loaded by the command that runs, not before: `lorad --help` stays quick.
    from app.cli import actions

    return actions.connect()


def _answer(client: "Client", voice: Voice, question: str, options: Options) -> Generator[str]:
    """Yield the text of an answer piece by piece.

    Raises:
        LoradError: There is none, or it breaks off.
    """
    from app.cli.client import AnswerChunk

    is_whole = False
    for data in client.open_chat(voice.body(question, options)):
        is_whole = data == "[DONE]"
        if is_whole:
            break
        chunk = AnswerChunk.model_validate_json(data)
        if chunk.error is not None:
            raise Unavailable(chunk.error.message, param=chunk.error.param, code=chunk.error.code)
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content
    if not is_whole:
        raise Unavailable("the connection broke off before the answer was complete; ask again")


def _kept(pieces: Iterable[str], said: list[str]) -> Iterator[str]:
    for piece in pieces:
        said.append(piece)
        yield piece


def _print(pieces: Iterable[str]) -> None:
    try:
        for piece in pieces:
            sys.stdout.write(_clean(piece))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _clean(piece: str) -> str:
    """Clean each line: a model may write terminal commands."""
    return "\n".join(output.clean(line) for line in piece.replace("\t", "    ").split("\n"))


def _width() -> int:
    """Return the columns of the terminal; 0 where there is none."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _side_by_side(voices: Sequence[Voice], question: str, options: Options) -> None:
    """Show two answers in two columns while both come."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    said = [""] * len(voices)

    def columns() -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in voices:
            table.add_column(ratio=1)
        table.add_row(*(Text(voice.model, style="bold") for voice in voices))
        table.add_row(*map(Text, said))
        return table

    try:
        with Live(columns(), refresh_per_second=12) as live:
            for index, piece in _mixed(voices, question, options):
                said[index] += _clean(piece)
                live.update(columns())
    finally:
        for voice, text in zip(voices, said, strict=True):
            voice.remember(question, text)


_Arrived = SimpleQueue[tuple[int, str | LoradError | None]]


def _mixed(voices: Sequence[Voice], question: str, options: Options) -> Iterator[tuple[int, str]]:
    """Yield pieces of all answers as they come, with the number of the voice.

    Raises:
        LoradError: One does not answer; the others are not waited for.
    """
    arrived: _Arrived = SimpleQueue()
    clients = [_connect() for _ in voices]
    for index, (client, voice) in enumerate(zip(clients, voices, strict=True)):
        pieces = _answer(client, voice, question, options)
        threading.Thread(target=_listen, args=[index, pieces, arrived], daemon=True).start()
    left = len(voices)
    try:
        while left:
            index, piece = arrived.get()
            if isinstance(piece, LoradError):
                raise piece
            left -= piece is None
            if piece is not None:
                yield index, piece
    finally:
        # Whoever still listens is cut off, and the API hears of it.
        for client in clients:
            client.close()


def _listen(index: int, pieces: Iterable[str], arrived: _Arrived) -> None:
    try:
        for piece in pieces:
            arrived.put((index, piece))
    except LoradError as error:
        arrived.put((index, error))
    except (RuntimeError, ValueError, OSError) as error:
        # The client was closed below it, because another voice failed or the user had enough.
        arrived.put((index, Unavailable(f"the connection was closed: {error}")))
    else:
        arrived.put((index, None))
