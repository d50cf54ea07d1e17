"""Presets: they fill the lora group where the user said nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.presets import PRESETS
from app.domain.spec import JobSpec

MINIMAL = {"base_model": "m", "dataset": {"id": "ds-" + "0" * 24}}


def lora(**raw: Any) -> tuple[Any, int, int]:
    group = JobSpec.model_validate({**MINIMAL, **raw}).lora
    return group.target_modules, group.r, group.lora_alpha


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimal", (["q_proj"], 4, 8)),
        ("standard", (["q_proj", "v_proj"], 8, 16)),
        ("full-attention", (["q_proj", "k_proj", "v_proj", "o_proj"], 8, 16)),
        ("mlp", (["up_proj", "down_proj"], 8, 16)),
        ("all-linear", ("all-linear", 16, 32)),
    ],
)
def test_a_preset_fills_modules_rank_and_alpha(name: str, expected: tuple[Any, int, int]):
    assert lora(preset=name) == expected


def test_what_the_user_gave_wins_over_the_preset():
    assert lora(preset="minimal", lora={"r": 32}) == (["q_proj"], 32, 8)


@pytest.mark.parametrize("raw", [{"lora_rank": 32}, {"lora": {"rank": 32}}])
def test_an_alias_wins_over_the_preset_too(raw: dict[str, Any]):
    assert lora(preset="minimal", **raw) == (["q_proj"], 32, 8)


def test_a_preset_named_as_target_modules_gives_only_the_modules():
    assert lora(lora={"target_modules": "minimal"}) == ("minimal", 16, 32)


@pytest.mark.parametrize("given", [None, [], "", 0, False])
def test_a_preset_does_not_hide_a_lora_group_of_the_wrong_type(given: Any):
    with pytest.raises(ValidationError):
        lora(preset="minimal", lora=given)


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValidationError) as caught:
        lora(preset="maximal")

    [error] = caught.value.errors()
    assert error["loc"] == ("preset",)
    assert all(name in error["msg"] for name in PRESETS)


def test_a_spec_with_a_preset_is_read_back_as_it_was():
    spec = JobSpec.model_validate({**MINIMAL, "preset": "standard", "lora": {"r": 4}})

    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
