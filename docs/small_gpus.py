"""The memory table of qlora-small-gpus.md, made by the planner from the shapes of known models.

    python docs/small_gpus.py            # writes the table
    python docs/small_gpus.py --check    # ends with 1 where the page differs

No weight is loaded and no GPU is used: these are plans, not measurements.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import torch  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from app.domain.memory import MemoryEstimate  # noqa: E402
from app.domain.spec import JobSpec  # noqa: E402
from docs import pages  # noqa: E402
from worker.training.footprint import Footprint, MicroBatch  # noqa: E402

PAGE = FOLDER / "qlora-small-gpus.md"
LENGTHS = (512, 2048)
_STATE = ("adapter", "gradients", "optimizer")
_HEADER = (
    "| base model | frozen weights | adapter and its state | 512 tokens | 2,048 tokens"
    " | 2,048, all kept | LoRA, 2,048 |",
    "|---|---:|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class Case:
    """One column: how the model is trained."""

    adapter: str
    num_tokens: int
    is_recomputed: bool = True

    def spec(self) -> JobSpec:
        """Return the job: rank 16 on every linear layer, one row at a time."""
        return JobSpec.model_validate(
            {
                "base_model": "planned",
                "adapter": self.adapter,
                "preset": "all-linear",
                "dataset": {"id": "ds-" + "0" * 24, "max_length": self.num_tokens},
                "training": {
                    "per_device_train_batch_size": 1,
                    "gradient_checkpointing": self.is_recomputed,
                    "optim": "paged_adamw_8bit" if self.adapter == "qlora" else "adamw_torch",
                },
            }
        )


CASES = (
    *(Case("qlora", num_tokens) for num_tokens in LENGTHS),
    Case("qlora", LENGTHS[-1], is_recomputed=False),
    Case("lora", LENGTHS[-1]),
)


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Qwen2Config:
    shape: dict[str, Any] = {"vocab_size": 151_936, "tie_word_embeddings": True, **more}
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        **shape,
    )


def _llama(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        **more,
    )


# The shapes that these models' config.json files give.
_UNTIED: dict[str, Any] = {"vocab_size": 152_064, "tie_word_embeddings": False}
MODELS: dict[str, PreTrainedConfig] = {
    "Qwen2.5-0.5B": _qwen(896, 4864, 24, 14, 2),
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, tie_word_embeddings=True),
    "Qwen2.5-1.5B": _qwen(1536, 8960, 28, 12, 2),
    "Qwen2.5-3B": _qwen(2048, 11008, 36, 16, 2),
    "Mistral-7B-v0.3": MistralConfig(
        vocab_size=32_768,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "Qwen2.5-7B": _qwen(3584, 18944, 28, 28, 4, **_UNTIED),
    "Llama-3.1-8B": _llama(4096, 14_336, 32, 32),
    "Qwen2.5-14B": _qwen(5120, 13824, 48, 40, 8, **_UNTIED),
}


def estimate(model: str, case: Case) -> MemoryEstimate:
    """Plan one row of `case.num_tokens` tokens, all of them targets, on CUDA in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        cast(Any, MODELS[model]).save_pretrained(folder)
        footprint = Footprint(
            case.spec(),
            Path(folder),
            device="cuda",
            dtype=torch.bfloat16,
            tokens_per_step=case.num_tokens,
        )
        return footprint.estimate(MicroBatch((case.num_tokens,), case.num_tokens))


def row(model: str) -> str:
    """Return the line of the table for one model."""
    estimates = [estimate(model, case) for case in CASES]
    parts = {part.name: part.expected_bytes for part in estimates[0].parts}
    state = sum(parts[name] for name in _STATE)
    figures = [parts["weights"], state, *(each.expected_bytes for each in estimates)]
    return " | ".join([f"| {model}", *(f"{figure / 1e9:.1f} GB" for figure in figures)]) + " |"


def table() -> str:
    return "\n".join([*_HEADER, *map(row, MODELS)])


if __name__ == "__main__":
    sys.exit(pages.write({PAGE: {"memory": table()}}, is_check="--check" in sys.argv))
