"""A broken export fails its proof, whatever was broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.exports import Parity
from app.domain.runs import RunFile
from app.domain.tools import ExportRequest
from tests.exports.conftest import request_for
from worker.training.export import live, produce

Trained = Callable[..., RunFile]
OTHER_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def proof_of(request: ExportRequest, files: Path, *, written_as: ExportRequest) -> Parity:
    """Write an export as another one would be written, and prove it as itself."""
    said = live.listen(request, live.load(request, request.adapter_folder))
    dtype = produce.dtype_of(request)
    produce.write(written_as, files, dtype=dtype)
    return produce.prove(request, files, said, dtype=dtype)


def without_scaling(request: ExportRequest, place: Path) -> ExportRequest:
    """Return a request for the same adapter with a scaling of 1."""
    copy = place / "adapter"
    shutil.copytree(request.adapter_folder, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": config["r"]}))
    return request.model_copy(update={"adapter_folder": copy})


def with_template(request: ExportRequest, template: str) -> ExportRequest:
    dataset = request.spec.dataset.model_copy(update={"chat_template": template})
    spec = request.spec.model_copy(update={"dataset": dataset})
    return request.model_copy(update={"spec": spec})


@pytest.mark.parametrize("export_format", ["merged", "gguf"])
def test_an_intact_export_is_proven(trained: Trained, folder: Path, export_format: str):
    request = request_for(trained(), format=export_format)

    proof = proof_of(request, folder, written_as=request)

    assert proof.is_proven, proof.problems


@pytest.mark.parametrize("export_format", ["merged", "gguf"])
def test_a_forgotten_scaling_fails(
    trained: Trained, folder: Path, tmp_path: Path, export_format: str
):
    request = request_for(trained(), format=export_format)

    proof = proof_of(request, folder, written_as=without_scaling(request, tmp_path))

    assert not proof.is_proven
    assert proof.mean_kl is not None
    assert proof.mean_kl > proof.bounds.max_mean_kl


@pytest.mark.parametrize("export_format", ["merged", "gguf"])
def test_a_wrong_base_fails(
    trained: Trained, models: dict[str, Path], folder: Path, export_format: str
):
    request = request_for(trained(), format=export_format)
    wrong = request.model_copy(update={"model_folder": models["other"]})

    proof = proof_of(request, folder, written_as=wrong)

    assert len(proof.problems) == 2
    assert proof.greedy_agreement < 0.5


def test_the_original_base_does_not_pass_for_the_dequantized_one(trained: Trained, folder: Path):
    request = request_for(trained(adapter="qlora", quantization={"load_in_4bit": True}))
    wrong = request.model_copy(update={"base": "original"})

    proof = proof_of(request, folder, written_as=wrong)

    assert not proof.is_proven
    assert proof.bounds.name == "merged-float32"


@pytest.mark.parametrize("export_format", ["adapter", "merged", "gguf"])
def test_a_wrong_template_fails(trained: Trained, folder: Path, export_format: str):
    request = request_for(trained(), format=export_format)

    proof = proof_of(request, folder, written_as=with_template(request, OTHER_TEMPLATE))

    assert "it renders conversations differently from training" in proof.problems


def test_one_tensor_that_was_not_merged_fails(trained: Trained, folder: Path):
    request = request_for(trained())
    said = live.listen(request, live.load(request, request.adapter_folder))
    produce.write(request, folder, dtype="float32")
    path = folder / "model.safetensors"
    weights, name = load_file(path), "model.layers.1.mlp.down_proj.weight"
    base = load_file(request.model_folder / "model.safetensors")
    assert not torch.equal(weights[name], base[name])

    save_file({**weights, name: base[name]}, path, metadata={"format": "pt"})
    proof = produce.prove(request, folder, said, dtype="float32")

    assert not proof.is_proven
    assert proof.template_identical


def test_a_bound_is_not_met_by_what_is_no_number(trained: Trained, folder: Path):
    request = request_for(trained())
    said = live.listen(request, live.load(request, request.adapter_folder))
    produce.write(request, folder, dtype="float32")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(float("nan"))

    save_file(weights, path, metadata={"format": "pt"})
    proof = produce.prove(request, folder, said, dtype="float32")

    assert (proof.mean_kl, len(proof.problems)) == (None, 2)
