"""Commands about a job's health: gradient flow as a heatmap, and the certificate."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output, tables
from app.cli.exits import ExitCode
from app.cli.jobs import JobId
from app.cli.output import Column, Mode, Output, View
from app.cli.tables import Cell, Piece, Style

if TYPE_CHECKING:
    # Only names of types: what is behind them takes longer to load than help may take.
    from app.domain.certificates import Certificate, Check
    from app.domain.gradient_flow import GradientFlow, MatrixFlow

app = typer.Typer()

# Colours of the 256-colour palette from faint to strong, for gradient norms 1e-8 to 10.
_SHADES = (17, 18, 19, 25, 31, 37, 42, 76, 112, 148, 184, 214)
_FAINTEST, _STRONGEST = -8.0, 1.0
_MARKS = {
    "dead": "DEAD",
    "not_moving": "STUCK",
    "nonfinite": "NAN",
    "not_applicable": "-",
}


@app.command("gradient-flow")
def gradient_flow(
    job_id: JobId,
    step: Annotated[
        int | None,
        typer.Option(min=1, help="A sampled step. Default: the newest.", show_default=False),
    ] = None,
    mode: Output = Mode.TABLE,
) -> None:
    """Show which adapter matrices get a gradient, layer by layer.

    A number is the power of ten of a gradient norm: -2.3 is a norm of 0.005.
    """
    with _actions().connect() as client:
        flow = client.gradient_flow(job_id, step=step)
    if mode is Mode.TABLE:
        _draw(flow)
    else:
        output.show_one(flow, _FLOW, mode)


@app.command()
def certificate(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """Show what was measured of the final adapter. Exits with 100 if it failed."""
    with _actions().connect() as client:
        found = client.certificate(job_id)
    output.show_with_parts(found, _CERTIFICATE, found.checks, _CHECK, mode)
    if found.status == "failed":
        raise typer.Exit(ExitCode.JOB_FAILED)


def _actions():
    # Loaded by the command that runs, so that `lorad --help` stays quick.
    from app.cli import actions

    return actions


def _draw(flow: "GradientFlow") -> None:
    output.heading(f"step {flow.step}: log10 of the gradient norms")
    modules = list(dict.fromkeys(each.module for each in flow.matrices))
    layers = list(dict.fromkeys(each.layer for each in flow.matrices))
    columns: dict[str, list[Cell]] = {
        output.clean(module): [_cell(flow, layer, module) for layer in layers] for module in modules
    }
    numbers: list[Cell] = [[Piece("-" if layer is None else str(layer))] for layer in layers]
    for part in _parts(columns, output.width()):
        rows = [[number, *(part[name][i] for name in part)] for i, number in enumerate(numbers)]
        table = tables.Table(titles=["layer", *part], rows=rows, folds=[False] * (len(part) + 1))
        output.show_lines(tables.draw(table, width=None, colour=output.has_colour()))
    _tell_health(flow)


def _parts(columns: Mapping[str, list[Cell]], width: int | None) -> Iterator[dict[str, list[Cell]]]:
    """Put as many columns side by side as fit; the others come below."""
    part: dict[str, list[Cell]] = {}
    used = len("layer")
    for name, cells in columns.items():
        texts = ["".join(piece.text for piece in cell) for cell in cells]
        wanted = 2 + max(map(tables.cells, [name, *texts]))
        if part and width is not None and used + wanted > width:
            yield part
            part, used = {}, len("layer")
        part[name] = cells
        used += wanted
    yield part


def _tell_health(flow: "GradientFlow") -> None:
    for name in flow.frozen_with_gradient:
        _tell(f"frozen, but has a gradient: {name}", tables.BAD)
    for each in flow.matrices:
        if each.state in ("dead", "not_moving", "nonfinite"):
            layer = "" if each.layer is None else f"layer {each.layer} "
            _tell(f"{_MARKS[each.state]}: {layer}{each.module} {each.matrix}", tables.BAD)
    if flow.is_healthy:
        _tell("healthy: every matrix that should have a gradient has one", tables.GOOD)


def _tell(text: str, style: Style) -> None:
    output.show_lines([tables.paint(output.clean(text), style, colour=output.has_colour())])


def _cell(flow: "GradientFlow", layer: int | None, module: str) -> list[Piece]:
    here = [each for each in flow.matrices if (each.layer, each.module) == (layer, module)]
    return [
        Piece(f" {output.clean(each.matrix)} {_value(each):>5} ", _style(each)) for each in here
    ] or [Piece("-")]


def _value(matrix: "MatrixFlow") -> str:
    if matrix.state in _MARKS:
        return _MARKS[matrix.state]
    return f"{_power(matrix):.1f}"


def _style(matrix: "MatrixFlow") -> Style:
    match matrix.state:
        case "healthy":
            share = (_power(matrix) - _FAINTEST) / (_STRONGEST - _FAINTEST)
            shade = _SHADES[round(min(max(share, 0.0), 1.0) * (len(_SHADES) - 1))]
            return Style(fg="white" if shade < 40 else "black", bg=shade)
        case "not_applicable":
            return tables.DIM
        case _:
            return Style(fg="white", bg="red", bold=True)


def _power(matrix: "MatrixFlow") -> float:
    return math.log10(matrix.grad_norm) if matrix.grad_norm else -math.inf


_FLOW: "View[GradientFlow]" = View(identity=lambda flow: flow.step, columns=[])

_CHECK: "View[Check]" = View(
    identity=lambda check: check.name,
    columns=[
        Column("CHECK", lambda check: check.name),
        Column(
            "RESULT",
            lambda check: "passed" if check.passed else "FAILED",
            lambda check: tables.GOOD if check.passed else tables.BAD,
        ),
        Column("MEASURED", lambda check: check.detail, folds=True),
    ],
)

_CERTIFICATE: "View[Certificate]" = View(
    identity=lambda found: found.adapter_sha256,
    columns=[
        Column(
            "STATUS",
            lambda found: found.status,
            lambda found: tables.GOOD if found.status == "passed" else tables.BAD,
        ),
        Column("ROWS", lambda found: f"{found.num_rows} {found.rows}"),
        Column("LOSS", lambda found: found.loss),
        Column("RELOADED_LOSS", lambda found: found.reloaded_loss),
        Column("BASE_LOSS", lambda found: found.base_loss),
        Column("ADAPTER_SHA256", lambda found: found.adapter_sha256),
        Column("SECONDS", lambda found: found.seconds),
    ],
)
