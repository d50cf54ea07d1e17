"""Which layers get an adapter, and what each option of an adapter means."""

import copy
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from app.domain.errors import NoMatchingLayers, TrainingError
from app.domain.options import LoraSpec
from app.domain.presets import PRESETS
from tests.training_runs import Workplace
from worker.training import adapters, checkpoint, model
from worker.training.adapters import Adapted
from worker.training.attention import Segments
from worker.training.batch import lay_end_to_end
from worker.training.encode import EncodedRow
from worker.training.loss import make_loss_sum, plain_head

CPU = torch.device("cpu")
KINDS = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


@pytest.fixture(scope="module")
def real(smollm2: Path) -> PreTrainedModel:
    return model.load_model(smollm2, dtype=torch.float32, device=CPU)


@pytest.fixture
def tiny(tiny_llama: Path) -> PreTrainedModel:
    return model.load_model(tiny_llama, dtype=torch.float32, device=CPU)


@pytest.mark.model
@pytest.mark.parametrize(
    ("preset", "kinds"),
    [
        ("minimal", {"q_proj"}),
        ("standard", {"q_proj", "v_proj"}),
        ("full-attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"up_proj", "down_proj"}),
        (
            "all-linear",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_a_preset_means_its_layers_in_each_of_the_30_blocks(
    real: PreTrainedModel, preset: str, kinds: set[str]
):
    layers = adapters.resolve_layers(real, preset)

    assert {name.rpartition(".")[2] for name in layers} == kinds
    assert len(layers) == 30 * len(kinds)


def test_every_preset_is_tried_above():
    assert set(PRESETS) == {"minimal", "standard", "full-attention", "mlp", "all-linear"}


def test_a_single_layer_can_be_named_in_full(tiny: PreTrainedModel):
    layers = adapters.resolve_layers(tiny, ["layers.1.self_attn.q_proj"])

    assert layers == ["model.layers.1.self_attn.q_proj"]


def test_a_name_that_matches_nothing_is_an_error_that_says_what_there_is(tiny: PreTrainedModel):
    with pytest.raises(NoMatchingLayers, match=rf"named c_attn; it has {KINDS}"):
        adapters.resolve_layers(tiny, ["c_attn"])


def test_one_wrong_name_among_right_ones_is_an_error_too(tiny: PreTrainedModel):
    with pytest.raises(NoMatchingLayers, match="named q_prj;"):
        adapters.resolve_layers(tiny, ["q_proj", "q_prj"])


def test_a_name_of_something_that_is_no_linear_layer_matches_nothing(tiny: PreTrainedModel):
    with pytest.raises(NoMatchingLayers, match="named self_attn;"):
        adapters.resolve_layers(tiny, ["self_attn"])


def test_the_adapter_is_what_is_trained_and_nothing_else(tiny: PreTrainedModel):
    spec = LoraSpec(r=3, target_modules=["q_proj", "down_proj"])

    adapted = adapters.attach(tiny, spec, seed=1, base_model="tiny")

    # Two layers; q_proj maps 64 to 64 and down_proj 128 to 64; A is (r, in) and B is (out, r).
    assert sum(p.numel() for p in adapted.parameters.values()) == 2 * 3 * (64 + 64 + 128 + 64)
    assert all("lora_" in name for name in adapted.parameters)
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert trained == list(adapted.parameters)


def test_the_initial_weights_depend_on_the_seed_alone(tiny_llama: Path):
    def initial(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        random.seed(noise)
        base = model.load_model(tiny_llama, dtype=torch.float32, device=CPU)
        generator_before = torch.get_rng_state()
        adapted = adapters.attach(base, LoraSpec(), seed=seed, base_model="tiny")
        assert torch.equal(torch.get_rng_state(), generator_before)
        return {name: p.detach() for name, p in adapted.parameters.items()}

    one, same, other = initial(1, 10), initial(1, 20), initial(2, 10)

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A model like the tiny one, with biases, and with a head of its own."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    config = AutoConfig.from_pretrained(
        tiny_llama, attention_bias=True, mlp_bias=False, tie_word_embeddings=False
    )
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return model.load_model(folder, dtype=torch.float32, device=CPU)


def attach(folder: Path, **lora: Any) -> Adapted:
    """Attach adapters, then give everything that is trained other values than it starts with."""
    adapted = adapters.attach(load(folder), LoraSpec(**lora), seed=1, base_model="tiny")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    adapted.model.eval()
    return adapted


def parts(adapted: Adapted, name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Any]:
    """Return a layer, its A and B, and some input."""
    layer: Any = adapted.base.get_submodule(name)
    x = torch.randn(6, layer.in_features, generator=torch.Generator().manual_seed(2))
    return layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight, x


Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


@torch.no_grad()
def test_rslora_scales_by_the_root_of_the_rank(tiny_llama: Path):
    adapted = attach(tiny_llama, r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])
    layer, a, b, x = parts(adapted, Q)

    difference = layer(x) - layer.base_layer(x)

    torch.testing.assert_close(difference, 8 / 4 * (x @ a.T @ b.T), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dora_trains_the_length_of_each_row_beside_its_direction(tiny_llama: Path):
    adapted = attach(tiny_llama, r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj"])
    layer, a, b, x = parts(adapted, Q)
    magnitude = layer.lora_magnitude_vector["default"].weight

    direction = layer.base_layer.weight + 2 * (b @ a)
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)

    assert sum("magnitude" in name for name in adapted.parameters) == 2
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_patterns_give_layers_a_rank_and_an_alpha_of_their_own_and_the_longest_name_wins(
    tiny_llama: Path,
):
    adapted = attach(
        tiny_llama,
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"q_proj": 6, "layers.0.self_attn.q_proj": 3},
        alpha_pattern={"up_proj": 2},
    )

    ranks = {
        name: adapted.base.get_submodule(name).lora_A["default"].weight.shape[0]
        for name in adapted.target_modules
    }
    layer, a, b, x = parts(adapted, UP)
    assert ranks == {Q: 3, Q.replace("0", "1"): 6, UP: 4, UP.replace("1", "0"): 4}
    torch.testing.assert_close(
        layer(x) - layer.base_layer(x), 2 / 4 * (x @ a.T @ b.T), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_no_adapted_layer_is_an_error_naming_them(
    tiny_llama: Path, pattern: str
):
    with pytest.raises(NoMatchingLayers, match=r"names v_proj, which is none .* q_proj, up_proj"):
        attach(tiny_llama, target_modules=["q_proj", "up_proj"], **{pattern: {"v_proj": 4}})


def test_a_module_to_save_is_trained_in_full_and_only_it(tiny_llama: Path):
    adapted = attach(tiny_llama, target_modules=["q_proj"], modules_to_save=["norm"])

    full = [name for name in adapted.parameters if "lora_" not in name]
    # Not `input_layernorm`, which ends in `norm` too.
    assert full == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_a_trained_head_gets_its_gradient_because_the_loss_takes_the_model_s_own_logits(
    untied: Path,
):
    adapted = attach(untied, target_modules=["q_proj"], modules_to_save=["lm_head"])
    row = EncodedRow(line=1, ids=np.array([5, 6, 7, 8]), is_target=np.array([False, True] * 2))
    batch = lay_end_to_end([row], device=CPU)

    make_loss_sum(adapted.base)(batch).backward()

    assert plain_head(adapted.base) is None
    head = adapted.parameters["base_model.model.lm_head.modules_to_save.default.weight"]
    assert head.grad is not None
    assert head.grad[8].norm() > 0


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head shares its weight with model.embed_tokens"),
        ({"modules_to_save": ["embed_tokens"]}, "shares its weight with lm_head .*tied"),
        ({"modules_to_save": ["self_attn"]}, "self_attn.q_proj gets an adapter; take it out"),
        ({"modules_to_save": ["q_proj"]}, "q_proj gets an adapter; take it out"),
        ({"modules_to_save": ["score"]}, "no module of LlamaForCausalLM is named score; it has .*"),
        ({"bias": "all"}, "lora.bias = all trains biases, and the model has none"),
        ({"bias": "lora_only"}, "and the adapted layers have none; leave it out"),
    ],
)
def test_what_cannot_be_trained_is_an_error_that_says_why(
    tiny_llama: Path, lora: dict[str, Any], message: str
):
    with pytest.raises(TrainingError, match=message) as caught:
        attach(tiny_llama, target_modules=["q_proj"], **lora)

    assert caught.value.param == f"lora.{next(iter(lora))}"


@pytest.mark.parametrize(("bias", "kinds"), [("lora_only", {"q"}), ("all", {"q", "k", "v", "o"})])
def test_biases_are_trained_as_far_as_asked_for(untied: Path, bias: str, kinds: set[str]):
    adapted = attach(untied, target_modules=["q_proj"], bias=bias)

    biases = [name for name in adapted.parameters if name.endswith("bias")]
    assert len(biases) == 2 * len(kinds)
    assert {re.sub(r".*self_attn\.(\w)_proj.*", r"\1", name) for name in biases} == kinds


# Every option, in pairs that do not get in each other's way.
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora and patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 5},
    },
    "dora and every bias": {"use_dora": True, "bias": "all"},
    "modules to save and some biases": {
        "modules_to_save": ["lm_head", "norm"],
        "bias": "lora_only",
    },
}


@pytest.mark.parametrize("lora", OPTIONS.values(), ids=list(OPTIONS))
def test_plain_peft_loads_the_final_folder_to_equal_outputs(
    untied: Path, tmp_path: Path, lora: dict[str, Any]
):
    adapted = attach(untied, target_modules=["q_proj", "down_proj"], **lora)
    facts = checkpoint.Facts(Workplace(tmp_path, untied).run_file(), "0" * 64)
    checkpoint.save_final(tmp_path / "final", adapted, step=1, facts=facts)
    base = model.load_plain(untied, dtype=torch.float32, device=CPU)
    ids = torch.arange(3, 13)[None]

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # PEFT warns about missing and unexpected keys
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")
        before = base(ids).logits.clone()
        loaded = PeftModel.from_pretrained(base, tmp_path / "final").eval()
        theirs = loaded(ids).logits
    with torch.no_grad():
        segments = Segments((10,), CPU)
        ours = adapted.base(ids, attention_mask=None, segments=segments).logits

    assert (theirs - before).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", OPTIONS.values(), ids=list(OPTIONS))
def test_a_resumed_run_with_an_option_is_the_uninterrupted_one(
    untied: Path, tmp_path: Path, lora: dict[str, Any]
):
    run = {
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **lora},
        "training": {"per_device_train_batch_size": 2, "max_steps": 3, "save_steps": 2},
    }
    workplace = Workplace(tmp_path, untied)

    whole = workplace.train(**run)
    rest = workplace.train(**run, resume=whole.checkpoint(2))

    assert whole.exit_code == 0
    assert rest.losses == {3: whole.losses[3]}
    assert rest.final_adapter == whole.final_adapter
    start = load_file(whole.checkpoint(2).folder / "adapter_model.safetensors")
    end = load_file(whole.folder / "final" / "adapter_model.safetensors")
    assert all(not torch.equal(start[name], end[name]) for name in start)


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("preset", ["minimal", "standard", "full-attention", "mlp"])
def test_a_preset_on_a_model_with_fused_names_fails_with_the_list_of_its_layers(
    gpt2: PreTrainedModel, preset: str
):
    with pytest.raises(NoMatchingLayers, match=r"it has c_attn, c_fc, c_proj, lm_head$"):
        adapters.resolve_layers(gpt2, preset)


def test_a_preset_on_a_model_with_qkv_proj_fails_with_the_list_of_its_layers():
    config = Phi3Config(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )

    with pytest.raises(
        NoMatchingLayers, match=r"it has .*gate_up_proj, lm_head, o_proj, qkv_proj$"
    ):
        adapters.resolve_layers(Phi3ForCausalLM(config), "standard")


@torch.no_grad()
def test_layers_that_keep_their_matrix_the_other_way_round_get_adapters_too(gpt2: PreTrainedModel):
    base = copy.deepcopy(gpt2)
    spec = LoraSpec(r=4, lora_alpha=8, target_modules=["c_attn"])

    adapted = adapters.attach(base, spec, seed=1, base_model="tiny")

    layer: Any = adapted.base.get_submodule("transformer.h.0.attn.c_attn")
    layer.lora_B["default"].weight.normal_()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 32)
    torch.testing.assert_close(
        layer(x) - layer.base_layer(x), 2 * (x @ a.T @ b.T), rtol=1e-4, atol=1e-4
    )
