"""What all systems are given: rows in lorad's order, their tokens, one adapter; run as a process.

Tokens, masks and the adapter are made here with transformers and PEFT alone. Where lorad's own
differ from them, its losses differ from everybody's and the comparison says so.

Usage: prepare.py PLAN.json
"""

# pyright: basic
# Checked loosely: torch, transformers and peft are typed in part only.

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import get_length_grouped_indices

from bench.comparison.rows import Row, conversations, encode, placed, visiting_order


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(plan["folder"])
    chats = list(conversations(Path(plan["data"]), is_mixed=plan["is_mixed"]))
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    rows = [encode(chat, tokenizer) for chat in chats]
    short = [index for index, row in enumerate(rows) if len(row["input_ids"]) <= plan["longest"]]
    chats, rows = [chats[index] for index in short], [rows[index] for index in short]
    num_used = plan["num_steps"] * plan["batch_size"]
    if len(rows) < num_used:
        raise SystemExit(
            f"{plan['num_steps']} steps of {plan['batch_size']} rows need {num_used} rows, and"
            f" {plan['data']} makes {len(rows)} of at most {plan['longest']} tokens;"
            " give a longer file or fewer steps"
        )
    order = visiting_order(len(rows), batch_size=plan["batch_size"], seed=plan["seed"])
    _write_lines(folder / "lorad.jsonl", placed([{"messages": chat} for chat in chats], order))
    _write_lines(folder / "in_order.jsonl", rows[:num_used])
    _write_lines(folder / "grouped.jsonl", [rows[index] for index in _grouped(rows, plan)])
    _make_adapter(plan, folder)


def _grouped(rows: Sequence[Row], plan: dict[str, Any]) -> list[int]:
    """Return the rows of some batches that transformers draws when it groups by length.

    It sorts 50 batches at a time, longest first, so the first few would be the longest of all.
    The warm-up steps get those; the measured steps get batches at even distances.
    """
    generator = torch.Generator().manual_seed(plan["seed"])
    lengths = [len(row["input_ids"]) for row in rows]
    size, num_warmup = plan["batch_size"], plan["num_warmup"]
    order = get_length_grouped_indices(lengths, size, generator=generator)
    batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    later, num_measured = batches[num_warmup:], plan["num_steps"] - num_warmup
    distance = len(later) / num_measured
    measured = [later[int((index + 0.5) * distance)] for index in range(num_measured)]
    return [row for batch in (*batches[:num_warmup], *measured) for row in batch]


def _make_adapter(plan: dict[str, Any], folder: Path) -> None:
    """Write the adapter that lorad draws from the seed, and what the floor needs to know."""
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    block = base.model.layers[0]
    linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    shapes = [(layer.in_features, layer.out_features) for layer in linears]
    targets = plan["targets"]
    torch.manual_seed(plan["seed"])
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=plan["rank"],
            lora_alpha=plan["alpha"],
            target_modules=targets if isinstance(targets, str) else list(targets),
        ),
    )
    model.save_pretrained(str(folder / "adapter"))
    config = base.config
    num_layers = len(base.model.layers)
    shape = {
        "num_layers": num_layers,
        "block_parameters": num_layers * sum(inputs * outputs for inputs, outputs in shapes),
        "lora_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "attention_width": config.num_attention_heads * config.head_dim,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "linears": shapes,
    }
    (folder / "shape.json").write_text(json.dumps(shape))


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
