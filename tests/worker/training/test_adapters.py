"""Which layers get an adapter."""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from app.domain.errors import NoMatchingLayers
from app.domain.options import LoraSpec
from app.domain.presets import PRESETS
from worker.training import adapters, model

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
