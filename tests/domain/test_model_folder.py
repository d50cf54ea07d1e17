"""Model folders: complete ones are described, and one that asks for code or a pickle is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import InvalidModel
from app.domain.model_folder import fingerprint, inspect

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    write(path / "config.json", CONFIG)
    write(path / "tokenizer.json", {})
    write(path / "tokenizer_config.json", {"eos_token": "</s>"})
    (path / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    return path


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_a_complete_folder_is_described(model: Path):
    found = inspect(model)

    assert (found.path, found.model_type) == (model, "llama")
    assert found.architecture == "LlamaForCausalLM"
    assert found.bytes == sum(file.stat().st_size for file in model.iterdir())


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", {}, [1]])
def test_an_architecture_that_is_not_a_list_of_names_is_unknown(model: Path, architectures: Any):
    write(model / "config.json", {**CONFIG, "architectures": architectures})

    assert inspect(model).architecture == "unknown"


def test_a_folder_without_a_chat_template_says_so(model: Path):
    assert not inspect(model).has_chat_template


def test_a_chat_template_is_found_in_the_tokenizer_configuration(model: Path):
    write(model / "tokenizer_config.json", {"chat_template": "{{ messages }}"})

    assert inspect(model).has_chat_template


def test_a_chat_template_is_found_in_a_file_of_its_own(model: Path):
    (model / "chat_template.jinja").write_text("{{ messages }}")

    assert inspect(model).has_chat_template


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(model: Path, name: str):
    (model / name).unlink()

    with pytest.raises(InvalidModel, match=f"{name} is missing"):
        inspect(model)


def test_a_folder_without_safetensors_is_refused(model: Path):
    (model / "model.safetensors").unlink()

    with pytest.raises(InvalidModel, match=r"no \.safetensors file"):
        inspect(model)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(InvalidModel, match=r"model gone: config\.json is missing"):
        inspect(tmp_path / "gone")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines"])
def test_a_folder_that_asks_for_code_is_refused(model: Path, file: str, key: str):
    write(model / file, {**CONFIG, key: {"AutoModel": "evil.Model"}})

    with pytest.raises(InvalidModel, match=f"{file} has {key}"):
        inspect(model)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "a.pkl", "a.pickle"]
)
def test_pickled_weights_are_refused_even_beside_safe_ones(model: Path, name: str):
    (model / name).write_bytes(b"")

    with pytest.raises(InvalidModel, match=f"{name} may be pickled"):
        inspect(model)


@pytest.mark.parametrize(
    "model_type", ["", "a/b", "../up", "Llama", "x" * 65, "llama\n", None, 1.5]
)
def test_a_model_type_that_is_not_a_plain_name_is_refused(model: Path, model_type: Any):
    write(model / "config.json", {**CONFIG, "model_type": model_type})

    with pytest.raises(InvalidModel, match="is not a plain name"):
        inspect(model)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(model: Path, content: bytes):
    (model / "config.json").write_bytes(content)

    with pytest.raises(InvalidModel, match=r"config\.json"):
        inspect(model)


def test_the_fingerprint_depends_on_weights_and_configuration_only(model: Path):
    before = fingerprint(model)
    (model / "README.md").write_text("notes")

    assert fingerprint(model) == before
    assert len(before) == 64


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_one_changed_byte_changes_the_fingerprint(model: Path, name: str):
    before = fingerprint(model)
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    assert fingerprint(model) != before


def test_moving_a_byte_from_one_file_to_the_next_changes_the_fingerprint(model: Path):
    (model / "a.json").write_bytes(b"12")
    (model / "b.json").write_bytes(b"3")
    before = fingerprint(model)
    (model / "a.json").write_bytes(b"1")
    (model / "b.json").write_bytes(b"23")

    assert fingerprint(model) != before
