"""The tables for people who come from other trainers say what `lorad convert` does."""

import json
import re
from typing import Any

import pytest

from app.cli import specs
from app.domain.converting import axolotl, llamafactory
from app.domain.spec import GROUPS, JobSpec
from tests.markdown import DOCS, Page, rows

MOVING = Page(DOCS / "moving.md")
# Refused as a whole, before its keys are looked at.
REFUSED = {"rl"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "axolotl": {"adapter": "lora", "learning_rate": 1e-4, "datasets": [{"path": "x.jsonl"}]},
    "LLaMA-Factory": {"finetuning_type": "lora", "dataset": "x"},
}


def converted() -> dict[str, dict[str, Any]]:
    """Return the jobs that configurations without more than they need become, and ours."""
    base = {"base_model": "m"}
    theirs = {
        "axolotl": axolotl.convert({**base, **CONFIGURATIONS["axolotl"]}),
        "LLaMA-Factory": llamafactory.convert(
            {"model_name_or_path": "m", **CONFIGURATIONS["LLaMA-Factory"]}
        ),
    }
    jobs = {
        tool: specs.with_dataset(each.spec, specs.PLACEHOLDER_DATASET)
        for tool, each in theirs.items()
    }
    jobs["lorad"] = {**base, "dataset": {"id": specs.PLACEHOLDER_DATASET}}
    return {tool: JobSpec.model_validate(job).model_dump(mode="json") for tool, job in jobs.items()}


def test_the_defaults_of_other_trainers_are_those_that_are_written_out():
    jobs = converted()

    for key, *cells in rows(MOVING.section("## Where a key is missing")):
        group, _, name = key.strip("`").partition(".")
        for tool, cell in zip(("axolotl", "LLaMA-Factory", "lorad"), cells, strict=True):
            if cell != "must be given":
                assert json.loads(cell.strip("`")) == jobs[tool][group][name], (key, tool)


def test_every_default_that_differs_is_in_the_table():
    jobs = converted()
    told = {row[0].strip("`") for row in rows(MOVING.section("## Where a key is missing"))}

    for tool in ("axolotl", "LLaMA-Factory"):
        for group in GROUPS:
            for name, value in jobs["lorad"][group].items():
                path = f"{group}.{name}"
                assert jobs[tool][group][name] == value or path in told, (tool, path)


@pytest.mark.parametrize(
    ("heading", "rules"),
    [("From axolotl", axolotl.RULES), ("From LLaMA-Factory", llamafactory.RULES)],
)
def test_the_keys_of_a_table_are_keys_that_are_converted(heading: str, rules: dict[str, Any]):
    spans = [
        span
        for row in rows(MOVING.section(f"## {heading}"))
        for span in re.findall(r"`([^`]+)`", row[0])
    ]
    named = {match.group(0) for span in spans if (match := re.match(r"\w+", span))}

    assert len(named) > 35
    assert named - rules.keys() <= REFUSED
