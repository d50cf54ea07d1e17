"""What differs between specs of jobs."""

from typing import Any

from app.domain import ids
from app.domain.differences import ABSENT, between
from app.domain.spec import JobSpec

DATASET = ids.new("ds")


def spec(**values: Any) -> JobSpec:
    dataset = {"id": DATASET}
    return JobSpec.model_validate({"base_model": "tiny", "dataset": dataset, **values})


def found(*specs: JobSpec) -> dict[str, tuple[Any, ...]]:
    return {each.key: each.values for each in between(specs)}


def test_only_keys_that_differ_are_told_in_the_order_of_the_spec():
    one = spec(training={"learning_rate": 1e-4, "max_steps": 3}, seed=1, lora={"r": 4})
    other = spec(training={"learning_rate": 2e-4, "max_steps": 3}, seed=2, lora={"r": 8})

    differences = found(one, other)

    assert differences == {"seed": (1, 2), "lora.r": (4, 8), "training.learning_rate": (1e-4, 2e-4)}
    assert list(differences) == ["seed", "lora.r", "training.learning_rate"]


def test_a_default_equals_the_same_value_given():
    assert found(spec(), spec(lora={"r": 16}, seed=42)) == {}


def test_maps_are_compared_key_by_key_and_a_missing_key_is_no_null():
    one = spec(metadata={"team": "a", "same": "x"})
    other = spec(metadata={"same": "x"})
    third = spec(dataset={"id": DATASET, "field_mapping": {"a": "b"}})

    assert found(one, other) == {"metadata.team": ("a", ABSENT)}
    assert found(other, third) == {
        "metadata.same": ("x", ABSENT),
        "dataset.field_mapping.a": (ABSENT, "b"),
    }


def test_three_specs_are_compared_at_once_and_one_alone_differs_in_nothing():
    specs = [spec(seed=seed) for seed in (1, 1, 3)]

    assert found(*specs) == {"seed": (1, 1, 3)}
    assert found(specs[0]) == {}
    assert found() == {}


def test_lists_are_compared_whole():
    one = spec(lora={"target_modules": ["q_proj", "v_proj"]})
    other = spec(lora={"target_modules": ["q_proj"]})

    assert found(one, other)["lora.target_modules"] == (["q_proj", "v_proj"], ["q_proj"])
