"""The memory table of the docs is what the planner says."""

import pytest

from docs import pages, small_gpus
from tests.markdown import rows

TABLE = pages.part(small_gpus.PAGE.read_text("utf-8"), "memory")


def test_every_model_has_a_row():
    assert [row[0] for row in rows(TABLE)] == list(small_gpus.MODELS)


# One of the usual size; `--check` of the script looks at all.
@pytest.mark.parametrize("model", ["Mistral-7B-v0.3"])
def test_the_figures_of_a_row_are_those_of_the_planner(model: str):
    assert small_gpus.row(model) in TABLE.splitlines()


def test_quantized_weights_and_recomputing_take_less():
    for _, weights, _, short, long, kept, lora in rows(TABLE):
        figures = [float(each.removesuffix(" GB")) for each in (weights, short, long, kept)]
        assert figures == sorted(figures)
        assert figures[2] < float(lora.removesuffix(" GB"))
