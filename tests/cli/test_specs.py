"""Job files say what people mean, or are refused with the place."""

import io
import json

import pytest

from app.cli import specs
from app.domain.errors import InvalidInput

VALID = """
base_model: tiny
dataset: {id: ds-0123456789abcdef01234567}
training:
  learning_rate: 2e-4
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="job.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file


@pytest.mark.parametrize(
    ("text", "number"),
    [("2e-4", 2e-4), ("1E5", 1e5), ("-3e+2", -300.0), (".5e1", 5.0), ("1.5e-3", 1.5e-3)],
)
def test_exponents_are_numbers(write, text, number):
    spec = specs.read(write(f"value: {text}"))

    assert spec["value"] == number
    assert isinstance(spec["value"], float)


@pytest.mark.parametrize("text", ["e4", "2e", "job-2e-4", "0x1e4z", "2026-01-02", "1.2.3e4"])
def test_names_and_dates_stay_text(write, text):
    assert specs.read(write(f"value: {text}"))["value"] == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("training:\n  max_steps: 1\n  max_steps: 2\n", "job.yaml"),
        ('{"max_steps": 1, "max_steps": 2}', "job.json"),
        ("a: {max_steps: 1, max_steps: 2}", "job.yaml"),
    ],
)
def test_a_key_given_twice_is_refused(write, text, name):
    with pytest.raises(InvalidInput, match="max_steps is given twice"):
        specs.read(write(text, name))


def test_a_yaml_fault_names_its_line(write):
    with pytest.raises(InvalidInput, match=r"line 3, column"):
        specs.read(write("a: 1\nb: 2\n  c: 3\n"))


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "- a\n- b\n", "", "42", "a: .nan", "a: &x [*x]"],
)
def test_what_is_no_plain_mapping_is_refused(write, text):
    with pytest.raises(InvalidInput):
        specs.read(write(text))


def test_json_with_tabs_is_read(write):
    assert specs.read(write('{\n\t"a": {"b": 1}\n}', "job.json")) == {"a": {"b": 1}}


def test_stdin_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a: 1"))

    assert specs.read("-") == {"a": 1}


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        specs.read(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.max_steps=20", {"training": {"max_steps": 20}}),
        ("training.learning_rate=5e-5", {"training": {"learning_rate": 5e-5}}),
        (
            "lora.target_modules=[q_proj, v_proj]",
            {"lora": {"target_modules": ["q_proj", "v_proj"]}},
        ),
        ("dataset.train_on_inputs=true", {"dataset": {"train_on_inputs": True}}),
        ("training.max_steps=null", {"training": {"max_steps": None}}),
        ("name=a=b", {"name": "a=b"}),
    ],
)
def test_overrides_have_the_types_of_yaml(override, expected):
    assert specs.read_overrides([override]) == expected


def test_an_override_wins_over_the_file(write):
    spec = specs.read(write(VALID), ["training.learning_rate=1e-3", "seed=7"])

    assert spec["training"] == {"learning_rate": 1e-3}
    assert spec["seed"] == 7


@pytest.mark.parametrize("override", ["max_steps", "=1", "a..b=1", "base_model.x=1", "a.=1"])
def test_an_unreadable_override_is_refused(write, override):
    with pytest.raises(InvalidInput, match="--set"):
        specs.read(write(VALID), [override])


def test_the_path_of_the_data_is_relative_to_the_job_file(write, tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")
    spec = specs.read(write("dataset: {path: data.jsonl}"))

    assert specs.dataset_path(spec) == tmp_path / "data.jsonl"


def test_the_path_of_an_override_is_relative_to_the_shell(write, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "other.jsonl").write_text("{}")
    monkeypatch.chdir(folder)
    spec = specs.read(write("dataset: {path: data.jsonl}"), ["dataset.path=other.jsonl"])

    assert specs.dataset_path(spec) == folder / "other.jsonl"


def test_a_missing_data_file_names_the_field(write):
    with pytest.raises(InvalidInput, match="there is no file") as refused:
        specs.dataset_path(specs.read(write("dataset: {path: absent.jsonl}")))

    assert refused.value.param == "dataset.path"


def test_path_and_id_contradict_each_other(write):
    with pytest.raises(InvalidInput, match="both"):
        specs.dataset_path(specs.read(write("dataset: {path: a.jsonl, id: ds-1}")))


def test_validation_names_the_field_and_the_remedy():
    spec = {"base_model": "tiny", "dataset": {"id": specs.PLACEHOLDER_DATASET}}

    with pytest.raises(InvalidInput, match="did you mean") as refused:
        specs.validate({**spec, "training": {"learning_rte": 1}})

    assert refused.value.param == "training.learning_rte"
    assert specs.validate(spec).base_model == "tiny"


def test_the_example_is_valid():
    spec = specs.read("examples/quickstart.yaml")
    path = specs.dataset_path(spec)
    checked = specs.validate(specs.with_dataset(spec, specs.PLACEHOLDER_DATASET))

    assert checked.training.learning_rate == 1e-3
    assert path is not None
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(rows) >= 150
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert path.read_bytes().isascii()


def test_an_override_without_a_value_is_refused(write):
    with pytest.raises(InvalidInput, match="write null to clear") as caught:
        specs.read(write(VALID), ["training.max_steps="])

    assert caught.value.param == "--set"


def test_an_override_that_is_no_yaml_is_the_fault_of_the_option(write):
    with pytest.raises(InvalidInput) as caught:
        specs.read(write(VALID), ["name=['x"])

    assert caught.value.param == "--set"


def test_keys_that_contradict_each_other_are_found_without_an_api(write):
    spec = specs.read(write(VALID), ["training.max_steps=5", "training.num_train_epochs=3"])

    with pytest.raises(InvalidInput, match="give one of them"):
        specs.validate(spec)
