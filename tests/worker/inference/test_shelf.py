"""Adapters beside each other on one base model, each with the weights that training gave it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from app.domain.errors import InvalidModel
from app.domain.inference import Adapter
from tests.worker.inference.conftest import adapted, damaged
from worker.training.inference.shelf import Shelf

IDS = torch.tensor([[5, 900, 77, 1234, 9, 4321]])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "target_modules": "all-linear", "lora_alpha": 3},
    "dora": {"use_dora": True},
    "lora biases": {"bias": "lora_only"},
    "all biases": {"bias": "all", "target_modules": ["q_proj", "down_proj"]},
    "saved modules": {"modules_to_save": ["lm_head"]},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 40}},
}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def alone(talker: Path, adapter: Adapter | None) -> torch.Tensor:
    return logits(adapted(talker, adapter))


@pytest.fixture
def base(talker: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(talker).eval()


def test_every_kind_of_adapter_is_what_peft_loads_alone_in_any_order(
    talker: Path, base: Any, make_adapter: Callable[..., Adapter]
):
    adapters: dict[str, Adapter | None] = {
        kind: make_adapter(kind.replace(" ", "-"), seed=n, **options)
        for n, (kind, options) in enumerate(KINDS.items())
    }
    adapters["base"] = None
    expected = {kind: alone(talker, adapter) for kind, adapter in adapters.items()}
    shelf = Shelf(base, most=len(KINDS))

    for kind in (*adapters, *reversed(adapters), *sorted(adapters)):
        shelf.use(adapters[kind])
        torch.testing.assert_close(logits(base), expected[kind], msg=kind)

    assert not torch.equal(expected["all biases"], expected["base"])
    stored = load_file(adapters["all biases"].folder / "adapter_model.safetensors")  # type: ignore[union-attr]
    assert any(name.endswith("bias") for name in stored)


def test_the_adapter_that_was_not_used_for_longest_is_dropped(
    talker: Path, base: Any, make_adapter: Callable[..., Adapter]
):
    one, two, three = (make_adapter(f"lru-{n}", seed=n) for n in range(3))
    shelf = Shelf(base, most=2)

    for adapter in (one, two, one, three):
        shelf.use(adapter)

    assert shelf.names == ("lru-0", "lru-2")
    assert not any("lorad2" in name for name, _ in base.named_parameters())
    shelf.use(two)
    torch.testing.assert_close(logits(base), alone(talker, two))


def test_an_adapter_in_use_is_not_dropped(base: Any, make_adapter: Callable[..., Adapter]):
    one, two, three = (make_adapter(f"use-{n}", seed=n) for n in range(3))
    shelf = Shelf(base, most=2)

    shelf.use(one)
    shelf.use(two)
    assert shelf.has_place(three, {"use-0"})
    assert not shelf.has_place(three, {"use-0", "use-1"})
    shelf.use(three, in_use={"use-0"})

    assert shelf.names == ("use-0", "use-2")


def test_a_damaged_adapter_is_refused_and_changes_nothing(
    talker: Path, base: Any, red: Adapter, blue: Adapter, tmp_path: Path
):
    shelf = Shelf(base, most=2)

    for time in range(2):  # also before any good one
        with pytest.raises(InvalidModel, match=r"damaged .* lacks 1"):
            shelf.use(Adapter(name="damaged", folder=damaged(red, tmp_path / str(time)).folder))
        shelf.use(blue)
        torch.testing.assert_close(logits(base), alone(talker, blue))
        shelf.use(None)
        torch.testing.assert_close(logits(base), alone(talker, None))

    assert shelf.names == ("blue",)


def test_files_that_are_no_adapter_are_refused(base: Any, red: Adapter, tmp_path: Path):
    shelf = Shelf(base, most=2)
    for name, content in (("adapter_config.json", "{"), ("adapter_model.safetensors", "rubbish")):
        folder = damaged(red, tmp_path / name).folder
        (folder / name).write_text(content)

        with pytest.raises(InvalidModel, match=name.partition(".")[0].split("_")[0]):
            shelf.use(Adapter(name="adapter-x", folder=folder))


def test_an_adapter_that_would_change_the_base_is_refused(base: Any, red: Adapter, tmp_path: Path):
    folder = damaged(red, tmp_path / "pissa").folder
    config = folder / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"')
    )

    with pytest.raises(InvalidModel, match="changes the base model"):
        Shelf(base, most=2).use(Adapter(name="pissa", folder=folder))
