"""Base models in 4 bits: what is quantized, what it computes, and what makes it the same one."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import import_utils
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.domain.errors import InvalidModel, LoradError, TrainingError
from app.domain.options import LoraSpec, QuantizationSpec
from tests.training_runs import Attempt, Workplace
from tests.worker.training.test_checkpoint import sign
from worker.training import adapters, model, quantize

CPU = torch.device("cpu")
NF4 = QuantizationSpec(load_in_4bit=True)
QLORA: dict[str, Any] = {
    "adapter": "qlora",
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.1},
    "training": {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2},
}
LAYER = "model.layers.1.mlp.down_proj"


def load(
    folder: Path, spec: QuantizationSpec = NF4, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    return model.load_model(folder, dtype=dtype, device=CPU, quantization=spec)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> PreTrainedModel:
    return load(tiny_llama)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    return Workplace(tmp_path_factory.mktemp("qlora"), tiny_llama).train(**QLORA)


def gradient(layer: Any, forward: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = forward(layer, x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("is_double", [True, False])
def test_a_layer_multiplies_by_its_dequantized_matrix_as_bitsandbytes_does(
    tiny_llama: Path, quant_type: Any, is_double: bool
):
    spec = NF4.model_copy(
        update={"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": is_double}
    )
    layer: Any = load(tiny_llama, spec).get_submodule(LAYER)
    plain = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)
    original = plain.get_submodule(LAYER).weight
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(1))

    ours, our_gradient = gradient(layer, lambda layer, x: layer(x), x)
    theirs, their_gradient = gradient(layer, lambda layer, x: type(layer).forward(layer, x), x)

    import bitsandbytes

    matrix = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert layer.weight.quant_state.quant_type == quant_type
    assert layer.weight.quant_state.nested is is_double
    assert 0.01 < ((matrix - original).norm() / original.norm()).item() < 0.2
    torch.testing.assert_close(ours, F.linear(x, matrix), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-6)


def test_the_compute_type_is_that_of_the_products(tiny_llama: Path, tiny: PreTrainedModel):
    spec = NF4.model_copy(update={"bnb_4bit_compute_dtype": "bfloat16"})
    coarse: Any = load(tiny_llama, spec).get_submodule(LAYER)
    fine: Any = tiny.get_submodule(LAYER)
    x = torch.randn(4, fine.in_features, generator=torch.Generator().manual_seed(1))

    difference = ((coarse(x) - fine(x)).norm() / fine(x).norm()).item()

    assert coarse(x).dtype == torch.float32
    assert 1e-4 < difference < 1e-2  # bfloat16 has 8 bits


def test_only_the_linear_layers_of_the_blocks_are_quantized_and_nothing_is_raised_to_float32(
    tiny_llama: Path,
):
    base = load(tiny_llama, dtype=torch.bfloat16)

    names = [name for name, _ in quantize.quantized_layers(base)]

    assert names == [name for name in adapters.linear_layers(base) if name != "lm_head"]
    assert len(names) == 14
    others = {p.dtype for p in base.parameters() if not quantize.is_quantized(p)}
    assert others == {torch.bfloat16}
    assert not any(p.requires_grad for p in base.parameters())
    assert not base.get_input_embeddings()._forward_hooks  # peft's and ours would make gradients


def test_looking_at_a_model_does_not_change_it(tiny_llama: Path):
    base = load(tiny_llama)
    before = quantize.digest(base)
    ids = torch.arange(10)[None]

    with torch.no_grad():
        base.eval()(ids, attention_mask=None, segments=whole_row(10))

    assert quantize.digest(base) == before


def whole_row(length: int) -> Any:
    from worker.training.attention import Segments

    return Segments((length,), CPU)


def test_the_hash_tells_how_and_what_was_quantized(tiny_llama: Path, tiny: PreTrainedModel):
    changed = load(tiny_llama)
    state = changed.get_submodule(LAYER).weight.quant_state
    digests = {quantize.digest(tiny), quantize.digest(load(tiny_llama))}
    for part, key in ((state, "absmax"), (state.state2, "absmax"), (state, "offset")):
        getattr(part, key).reshape(-1).view(torch.uint8)[0] ^= 1
        digests.add(quantize.digest(changed))
    fp4 = NF4.model_copy(update={"bnb_4bit_quant_type": "fp4"})

    assert len(digests) == 4
    assert quantize.digest(load(tiny_llama, fp4)) not in digests


def test_a_model_is_quantized_in_one_thread_because_a_mean_depends_on_their_number():
    before = torch.get_num_threads()

    with quantize.reproducible(CPU):
        inside = torch.get_num_threads()

    assert (inside, torch.get_num_threads()) == (1, before)


def test_parameters_are_counted_as_what_they_stand_for(tiny_llama: Path, tiny: PreTrainedModel):
    plain = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)

    sizes = quantize.sizes(tiny)

    # Two blocks: q and o 64 x 64, k and v 32 x 64, three of 64 x 128.
    assert sizes.num_quantized_parameters == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert sizes.num_parameters == sum(p.numel() for p in plain.parameters())
    assert sizes.quantized_bytes >= sizes.num_quantized_parameters / 2
    assert quantize.sizes(plain).quantized_bytes == 0


def test_adapters_go_around_4_bit_layers_although_the_warm_server_hid_bitsandbytes(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for remembered in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available):
        remembered.cache_clear()
        assert remembered() is False
    monkeypatch.undo()

    adapted = adapters.attach(load(tiny_llama), LoraSpec(), seed=1, base_model="tiny")

    layers = [adapted.base.get_submodule(name) for name in adapted.target_modules]
    assert {f"{type(layer).__module__}.{type(layer).__name__}" for layer in layers} == {
        "peft.tuners.lora.bnb.Linear4bit"
    }
    assert len(layers) == 14


def test_a_model_without_linear_layers_to_quantize_is_refused(tiny_llama: Path):
    plain = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)

    with pytest.raises(InvalidModel, match="LlamaForCausalLM has no linear layer that can be"):
        quantize.finish(plain)


def test_a_folder_with_quantized_weights_is_refused(tiny_llama: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidModel, match=r"packed is stored quantized \(quant_method gptq\)"):
        load(folder)


def test_a_worker_without_bitsandbytes_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(TrainingError, match="bitsandbytes does not load") as caught:
        quantize.load_bitsandbytes()

    assert isinstance(caught.value, LoradError)
    assert caught.value.code == "not_installed"


def test_a_module_in_4_bits_cannot_be_trained_in_full(tiny_llama: Path):
    spec = LoraSpec(target_modules=["q_proj"], modules_to_save=["up_proj"])

    with pytest.raises(TrainingError, match=r"up_proj cannot be trained .* stored in 4 bits"):
        adapters.attach(load(tiny_llama), spec, seed=1, base_model="tiny")


def test_the_ready_event_says_how_much_is_quantized(whole: Attempt):
    assert whole.exit_code == 0
    assert whole.ready.num_quantized_parameters == 73_728
    assert 73_728 / 2 < whole.ready.quantized_bytes < 73_728
    # Packed weights hold two numbers in a byte; all of them are counted.
    assert whole.ready.num_parameters == 3_219_776


def test_a_resumed_run_is_the_run_that_was_never_interrupted(workplace: Workplace, whole: Attempt):
    rest = workplace.train(**QLORA, resume=whole.checkpoint(2))

    assert whole.losses | rest.losses == whole.losses
    assert sorted(rest.losses) == [3, 4]
    assert rest.final_adapter == whole.final_adapter
    assert not rest.notices


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"adapter": "lora"}, "adapter"),
        ({"quantization": {"bnb_4bit_quant_type": "fp4"}}, "base_quantized_sha256"),
        ({"quantization": {"bnb_4bit_use_double_quant": False}}, "base_quantized_sha256"),
    ],
)
def test_a_resume_on_another_base_is_refused(
    workplace: Workplace, whole: Attempt, change: dict[str, Any], field: str
):
    attempt = workplace.train(**{**QLORA, **change}, resume=whole.checkpoint(2))

    assert attempt.failed.code == "resume_mismatch"
    assert field in attempt.failed.message


def test_a_base_that_quantizes_to_other_bits_is_refused_under_an_equal_spec(
    workplace: Workplace, whole: Attempt, tmp_path: Path
):
    point = whole.checkpoint(2)
    folder = shutil.copytree(point.folder, tmp_path / "copy" / point.folder.name)
    saved = json.loads((folder / "training_state.json").read_text())
    saved["identity"]["base_quantized_sha256"] = "0" * 64
    (folder / "training_state.json").write_text(json.dumps(saved))

    attempt = workplace.train(**QLORA, resume=sign(point.model_copy(update={"folder": folder})))

    assert attempt.failed.code == "resume_mismatch"
    assert "base_quantized_sha256" in attempt.failed.message


@pytest.mark.model
def test_the_linear_layers_of_smollm2_take_less_than_0_30_of_their_float16_bytes(smollm2: Path):
    base = load(smollm2)

    sizes = quantize.sizes(base)
    with torch.no_grad():
        ids = torch.tensor([[504, 3575, 282, 4649, 314]])  # "The capital of France is"
        logits = base(ids, attention_mask=None, segments=whole_row(5)).logits

    assert sizes.num_quantized_parameters == 106_168_320
    assert sizes.quantized_bytes < 0.30 * 2 * sizes.num_quantized_parameters
    assert logits[0, -1].argmax().item() == 7042  # " Paris"
