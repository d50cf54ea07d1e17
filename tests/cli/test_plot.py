"""Curves and sparklines keep extremes, show what is not finite, and fit; CSV keeps every digit."""

import csv
import io

import pytest
from rich.cells import cell_len

from app.cli import plot
from tests.cli.conftest import JOB_ID, listing, make_step

METRICS = f"GET /jobs/{JOB_ID}/metrics"
EVALUATIONS = f"GET /jobs/{JOB_ID}/evaluations"


def rows_of(lines: list[str]) -> list[str]:
    """Return what is drawn between the axes."""
    return [line.partition("│")[2] for line in lines if "│" in line]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_curve_fits_its_width_and_has_labelled_axes(width):
    points = [(step, 10.0 / step) for step in range(1, 101)]

    lines = plot.curve(points, title="loss", width=width)

    assert lines[0] == "loss"
    assert max(map(cell_len, lines)) <= width
    assert lines[1].split()[0] == "10"
    assert any(line.split()[:1] == ["0.1"] for line in lines)
    assert lines[-2].split()[0] == "1"
    assert lines[-2].split()[-1] == "100"


def test_one_spike_among_many_steps_is_drawn_to_its_top():
    points = [(step, 100.0 if step == 50_000 else 1.0) for step in range(1, 100_001)]

    lines = plot.curve(points, title="loss", width=60)

    drawn = rows_of(lines)
    middle = {index for index, char in enumerate(drawn[0]) if char != " "}
    assert lines[1].split()[0] == "100"
    assert len(middle) == 1
    assert abs(middle.pop() - len(drawn[-1]) / 2) <= 1
    assert all(row.strip() for row in drawn)


def test_steps_that_were_not_finite_are_marked_and_counted():
    points = [(step, None if step in (4, 5) else 1.0 * step) for step in range(1, 11)]

    lines = plot.curve(points, title="loss", width=60)

    assert "\u00d7" in lines[-3]
    assert "\u00d7 2 not drawn" in lines[-1]
    assert plot.curve([(1, None)], title="loss", width=60) == ["loss", "no finite values yet"]


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    points = [(1, 0.0), (2, 1e-4), (3, 1.0)]

    lines = plot.curve(points, title="lr", width=60, log=True)

    assert lines[1].split()[0] == "1"
    assert any(line.split()[:1] == ["0.0001"] for line in lines)
    assert any(line.split()[:1] == ["0.01"] for line in lines)
    assert "1 not drawn" in lines[-1]


def test_labels_have_the_digits_that_tell_them_apart():
    lines = plot.curve([(1, 2.00001), (2, 2.00002)], title="loss", width=60)

    labels = [line.split()[0] for line in lines[1:16] if line[0:9].strip()]
    assert len(set(labels)) == 3


def test_a_sparkline_shows_a_course_and_a_gap():
    assert plot.sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert plot.sparkline([1, None, 8], 8) == "▁\u00d7█"
    assert plot.sparkline([5, 5], 8) == "▁▁"
    assert plot.sparkline([], 8) == ""
    assert len(plot.sparkline(list(range(1000)), 20)) == 20


def test_a_history_stays_small_and_keeps_its_shape():
    history = plot.History(capacity=64)
    for step in range(10_000):
        history.add(float(step))

    values = list(history.values)
    assert len(values) <= 64
    assert values == sorted(values)
    assert plot.sparkline(values, 8) == "▁▂▃▄▅▆▇█"


def test_metrics_can_be_drawn(api, lorad):
    steps = [{**make_step(n), "loss": 5.0 / n} for n in range(1, 21)]
    api.on(METRICS, listing(*steps))
    evaluation = {
        "step": 10,
        "epoch": 1.0,
        "eval_loss": 3.0,
        "token_accuracy": 0.5,
        "num_rows": 1,
        "num_target_tokens": 1,
        "is_best": True,
        "num_since_best": 0,
        "seconds": 1.0,
    }
    api.on(EVALUATIONS, listing(evaluation))

    drawn = lorad("metrics", JOB_ID, "--plot").stdout
    norms = lorad("metrics", JOB_ID, "--plot", "--metric", "grad_norm", "--log").stdout

    assert drawn.splitlines()[0] == "loss, nats per target token"
    assert sum("o" in row for row in rows_of(drawn.splitlines())) == 1
    assert "o evaluation" in drawn
    assert norms.splitlines()[0].startswith("gradient norm")
    assert lorad("metrics", JOB_ID, "--plot", "--csv").code == 2
    assert lorad("metrics", JOB_ID, "--log").code == 2
    assert lorad("metrics", JOB_ID, "--plot", "--json").code == 2


def test_csv_has_every_field_and_every_digit(api, lorad):
    steps = [{**make_step(1), "loss": 0.1 + 0.2}, {**make_step(2), "loss": None}]
    api.on(METRICS, listing(*steps))

    done = lorad("metrics", JOB_ID, "--csv")

    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["loss"] for row in rows] == ["0.30000000000000004", ""]
    assert set(rows[0]) == set(make_step(1))
    assert rows[1]["batch_sha"] == "0" * 16
