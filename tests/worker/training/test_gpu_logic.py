"""The checks of tests/gpu, run on the CPU and a tiny model, so that they are known to work."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench import gpu
from bench.make_model import SIZES, make_model
from tests.gpu import checks
from tests.training_runs import Workplace


def test_ten_steps(workplace: Workplace):
    checks.ten_steps_are_finite_and_learn(workplace, "cpu", learning_rate=1e-2)


def test_falling_loss(workplace: Workplace):
    first, last = checks.the_loss_falls(
        workplace, "cpu", num_steps=12, learning_rate=1e-2, at_least=0.001
    )

    assert last < first


def test_a_loss_that_does_not_fall_enough_is_an_error():
    losses = [*[2.0] * 10, *[1.41] * 10]

    assert checks.require_fall(losses, 0.29) == pytest.approx((2.0, 1.41))
    with pytest.raises(AssertionError):
        checks.require_fall(losses, 0.30)


def test_gradient_flow(workplace: Workplace):
    checks.gradients_flow(workplace, "cpu")


def test_checkpoints(workplace: Workplace):
    checks.checkpoints_are_written(workplace, "cpu")


def test_resuming(workplace: Workplace):
    checks.a_resumed_run_goes_on_as_if_it_had_not_stopped(workplace, "cpu", tolerance=0.0)


def test_target_sets(workplace: Workplace):
    checks.every_target_set_trains(workplace, "cpu", num_layers=2)


def test_memory_of_a_made_model(tmp_path: Path, smollm2: Path):
    folder = make_model("tiny", tmp_path / "model", num_layers=1, tokenizer=smollm2)
    place = checks.place_for(tmp_path / "run", folder)
    case = {"batch_size": 2, "length": 64, "lora": {"r": 2, "target_modules": "all-linear"}}

    peak = checks.memory_stays_below(place, "cpu", limit_bytes=1e12, **case)

    assert peak > 0
    with pytest.raises(AssertionError, match="GB"):
        checks.memory_stays_below(place, "cpu", limit_bytes=1e6, **case)


def test_a_made_model_loads_with_the_layers_asked_for(tmp_path: Path, smollm2: Path):
    folder = make_model("tiny", tmp_path / "model", num_layers=3, tokenizer=smollm2)

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 3
    assert {t.dtype for f in folder.glob("*.safetensors") for t in load_file(f).values()} == {
        torch.bfloat16
    }
    assert SIZES["llama-7b"].num_layers == 32


@pytest.mark.parametrize("name", ["8 layers, all levers", "QLoRA 1 x 512"])
def test_a_case_of_the_gpu_benchmark(tmp_path: Path, name: str, smollm2: Path):
    case = next(case for case in gpu.cases() if case.name == name)
    given = Namespace(device="cpu", warmup=0, steps=1)

    measured = gpu.run_case(gpu.tiny(case), tmp_path, given, flops_per_second=1e9)

    assert 0 < measured.loss < 20
    assert measured.tokens_per_second == pytest.approx(
        gpu.tiny(case).batch_size * 24 / measured.seconds
    )
    assert measured.peak_bytes > 0


def test_the_gpu_benchmark_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit, match=r"needs a CUDA device.*--device cpu --tiny"):
        gpu.require_device("cuda")
