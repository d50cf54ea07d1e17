"""Exports are the trained model again, as plain transformers reads them from disk."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain import failpoints
from app.domain.checkpoints import MANIFEST_NAME, hash_file
from app.domain.errors import CheckpointUnusable, InvalidModel
from app.domain.exports import FILES_FOLDER, GGUF_NAME, ExportManifest
from app.domain.runs import RunFile
from tests.exports.conftest import request_for
from worker.training.export import live, produce

Trained = Callable[..., RunFile]
IDS = torch.tensor([[1, 40, 50, 60, 70, 80, 90, 100]])
KINDS: dict[str, dict[str, Any]] = {
    "patterns with rank-stabilized scaling": {
        "lora": {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2},
            "alpha_pattern": {"down_proj": 5},
        }
    },
    "DoRA": {"lora": {"use_dora": True}},
    "modules in full": {"model": "untied", "lora": {"modules_to_save": ["lm_head", "norm"]}},
    "biases": {"model": "qwen2", "lora": {"bias": "all"}},
}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def plain(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **options
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_keeps_what_was_trained(trained: Trained, folder: Path, kind: str):
    run = trained(**KINDS[kind])
    request = request_for(run)

    result = produce.produce(request, folder)

    assert result.parity.is_proven, result.parity.problems
    assert (result.dtype, result.parity.num_prompts) == ("float32", 8)
    assert result.parity.num_tokens >= 8
    exported = logits(plain(folder / FILES_FOLDER))
    adapted = logits(live.load(request, request.adapter_folder))
    torch.testing.assert_close(exported, adapted, atol=2e-4, rtol=0)
    assert (exported - logits(plain(run.model_folder))).abs().max() > 0.5


def test_an_export_that_meets_a_full_disk_says_so_and_the_next_try_succeeds(
    trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    request = request_for(trained())
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, "export.phase=raise:ENOSPC@2")

    with pytest.raises(OSError, match=r"export\.phase"):
        produce.produce(request, folder)
    monkeypatch.delenv(failpoints.VARIABLE)
    (again := folder / "again").mkdir()
    result = produce.produce(request, again)

    assert result.parity.is_proven, result.parity.problems


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merge_is_stored_in_the_type_that_was_asked_for(
    trained: Trained, folder: Path, dtype: str
):
    result = produce.produce(request_for(trained(), dtype=dtype), folder)

    assert result.parity.is_proven, result.parity.problems
    weights = load_file(folder / FILES_FOLDER / "model.safetensors")
    assert {str(each.dtype) for each in weights.values()} == {f"torch.{dtype}"}
    assert result.parity.mean_kl


def test_what_was_merged_says_nothing_of_this_machine_and_lists_its_files(
    trained: Trained, folder: Path
):
    run = trained()

    result = produce.produce(request_for(run), folder)

    files = folder / FILES_FOLDER
    listed = {each.name: each for each in result.files}
    assert set(listed) == {path.name for path in files.iterdir()}
    assert all(hash_file(files / name) == each.sha256 for name, each in listed.items())
    manifest = ExportManifest.model_validate_json((files / MANIFEST_NAME).read_bytes())
    assert (manifest.step, manifest.base, manifest.parity) == (6, "original", result.parity)
    assert {"tokenizer.json", "generation_config.json", "Modelfile", "VLLM.txt"} < set(listed)
    for path in files.iterdir():
        assert str(run.model_folder.parent).encode() not in path.read_bytes()


def test_the_template_of_the_job_is_in_the_export(trained: Trained, folder: Path):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    run = trained(dataset={"chat_template": template})

    result = produce.produce(request_for(run), folder)

    assert result.parity.template_identical
    tokenizer = AutoTokenizer.from_pretrained(folder / FILES_FOLDER, local_files_only=True)
    conversation = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert rendered == "[user] Hi<|im_end|>"


def test_an_exported_adapter_brings_the_template_that_its_job_had(trained: Trained, folder: Path):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    run = trained(dataset={"chat_template": template})

    result = produce.produce(request_for(run, format="adapter"), folder)

    assert result.parity.is_proven, result.parity.problems
    files = folder / FILES_FOLDER
    assert (files / "chat_template.jinja").read_text() == template
    assert "--chat-template ./chat_template.jinja" in (files / "VLLM.txt").read_text()


@pytest.mark.parametrize(
    ("export_format", "source"),
    [
        ("adapter", "FROM model-of-the-test\nADAPTER .\n"),
        ("merged", "FROM .\n"),
        ("gguf", "FROM ./model.gguf\n"),
    ],
)
def test_a_modelfile_names_its_source_and_the_end_of_a_turn(
    trained: Trained, folder: Path, export_format: str, source: str
):
    request = request_for(trained(), format=export_format)

    produce.write(request, folder, dtype=produce.dtype_of(request))

    lines = (folder / "Modelfile").read_text().splitlines(keepends=True)
    said = "".join(line for line in lines if not line.startswith("#"))
    assert said == f'{source}PARAMETER stop "<|im_end|>"\n'


@pytest.mark.parametrize("model", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_gguf_file_holds_the_trained_model(
    trained: Trained, folder: Path, model: str, dtype: str
):
    request = request_for(trained(model), format="gguf", dtype=dtype)

    result = produce.produce(request, folder)

    assert result.parity.is_proven, result.parity.problems
    files = folder / FILES_FOLDER
    difference = logits(plain(files, gguf_file=GGUF_NAME)) - logits(
        live.load(request, request.adapter_folder)
    )
    within = {"f32": 2e-4, "f16": 2e-2, "bf16": 0.2, "q8_0": 0.6}[dtype]
    assert difference.abs().max() < within
    assert f"FROM ./{GGUF_NAME}" in (files / "Modelfile").read_text()


def test_an_exported_adapter_is_the_checkpoints_and_says_how_to_serve_it(
    trained: Trained, folder: Path
):
    run = trained(lora={"rank_pattern": {"q_proj": 12}})
    request = request_for(run, format="adapter")

    result = produce.produce(request, folder)

    files = folder / FILES_FOLDER
    assert (result.parity.greedy_agreement, result.parity.mean_kl) == (1, 0)
    weights = "adapter_model.safetensors"
    assert (files / weights).read_bytes() == (request.adapter_folder / weights).read_bytes()
    line = (files / "VLLM.txt").read_text()
    assert "vllm serve model-of-the-test --enable-lora --max-lora-rank 16" in line
    assert "--lora-modules tuned=." in line
    assert "ADAPTER ." in (files / "Modelfile").read_text()


def test_a_quantized_jobs_adapter_is_merged_into_the_weights_that_it_saw(
    trained: Trained, tmp_path: Path
):
    run = trained(adapter="qlora", quantization={"load_in_4bit": True})
    proofs = {}
    for base in ("dequantized", "original"):
        (tmp_path / base).mkdir()
        result = produce.produce(request_for(run, base=base), tmp_path / base)
        proofs[base] = result.parity

    seen, original = proofs["dequantized"], proofs["original"]
    assert seen.is_proven
    assert (seen.greedy_agreement, seen.bounds.name) == (1, "merged-float32")
    assert (seen.mean_kl or 0) < 1e-6 < 1e-3 < (original.mean_kl or 0)
    assert original.bounds.name == "original-base-of-qlora"
    listed = json.loads((tmp_path / "dequantized" / FILES_FOLDER / MANIFEST_NAME).read_bytes())
    assert listed["base"] == "dequantized"


def test_an_adapter_is_not_exported_with_another_base_than_it_was_trained_on(
    trained: Trained, models: dict[str, Path], folder: Path
):
    request = request_for(trained(), model_folder=models["other"])

    with pytest.raises(InvalidModel, match="not the one that the adapter was trained on") as caught:
        produce.produce(request, folder)

    assert caught.value.code == "base_model_changed"


def test_an_adapter_that_was_changed_after_the_commit_is_not_exported(
    trained: Trained, folder: Path
):
    request = request_for(trained(), adapter_manifest_sha256="0" * 64)

    with pytest.raises(CheckpointUnusable, match="changed after the commit"):
        produce.produce(request, folder)
