"""An adapter from elsewhere becomes a base model, if it is what it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.cli import models as commands
from app.domain import model_folder
from app.domain.errors import InvalidInput
from app.domain.runs import FINAL_FOLDER, RunFile
from tests.exports.conftest import request_for
from worker import models as adding
from worker.training.export import live

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(trained: Callable[..., RunFile], tmp_path: Path) -> Path:
    """A copy of an adapter, as it could have come from anywhere."""
    folder = tmp_path / "adapter"
    shutil.copytree(trained().attempt_folder / FINAL_FOLDER, folder)
    return folder


def imported(adapter: Path, base: Path, dest: Path) -> int:
    return adding.main(["add-adapter", str(adapter), str(dest), "--base", str(base)])


def test_an_adapter_is_merged_into_its_base(
    adapter: Path, trained: Callable[..., RunFile], models: dict[str, Path], tmp_path: Path
):
    dest = tmp_path / "models" / "mine"

    assert imported(adapter, models["llama"], dest) == 0

    assert model_folder.inspect(dest).has_chat_template
    request = request_for(trained())
    plain = AutoModelForCausalLM.from_pretrained(dest, local_files_only=True).eval()
    with torch.inference_mode():
        difference = plain(IDS).logits - live.load(request, adapter)(IDS).logits
    assert difference.abs().max() < 2e-4
    assert [path.name for path in dest.parent.iterdir()] == ["mine"]


def test_what_code_could_come_in_by_is_scrubbed(
    adapter: Path, models: dict[str, Path], tmp_path: Path
):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    auto = {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}, "runtime_config": 1}
    path.write_text(json.dumps({**config, **auto}))

    assert imported(adapter, models["llama"], tmp_path / "models" / "mine") == 0


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"")


def other_kind(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "IA3"}))


def other_prefix(adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    renamed = {name.replace("model.model", "model.inner.model"): t for name, t in weights.items()}
    save_file(renamed, adapter / WEIGHTS, metadata={"format": "pt"})


def missing_tensor(adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (pickled, "may be pickled"),
        (other_kind, "only LORA"),
        (other_prefix, "does not belong to"),
        (missing_tensor, "lacks"),
    ],
)
def test_an_adapter_that_would_not_be_what_it_says_is_refused(
    adapter: Path,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    says: str,
):
    spoil(adapter)

    assert imported(adapter, models["llama"], tmp_path / "models" / "mine") == 2

    assert says in capsys.readouterr().err
    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def home(tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that has the adapter's base model under the name that the adapter says."""
    folder = tmp_path / "home"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model-of-the-test").symlink_to(models["llama"])
    monkeypatch.setenv("LORAD_HOME", str(folder))
    return folder


def test_the_command_finds_the_base_that_an_adapter_names(adapter: Path, home: Path):
    commands.import_model(adapter, name="org/mine", home=home)

    assert model_folder.inspect(home / "models" / "org" / "mine").model_type == "llama"


def test_the_command_names_the_base_that_is_missing(adapter: Path, home: Path):
    (home / "models" / "model-of-the-test").unlink()

    with pytest.raises(InvalidInput, match="model-of-the-test, is not in the models folder"):
        commands.import_model(adapter, name="mine", home=home)


def test_the_command_refuses_a_base_for_what_is_no_adapter(home: Path, models: dict[str, Path]):
    with pytest.raises(InvalidInput, match="is no PEFT adapter"):
        commands.import_model(models["other"], base="model-of-the-test", home=home)
