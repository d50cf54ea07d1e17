"""What all systems are given: rows in lorad's order, their tokens, one adapter; run as a process.

Tokens, masks and the adapter are made here with transformers and PEFT alone. Where lorad's own
differ from them, its losses differ from everybody's and the comparison says so.

Usage: prepare.py PLAN.json
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import get_length_grouped_indices

Chat = list[dict[str, str]]
Row = dict[str, list[int]]

# How many exchanges the conversations with mixed lengths have, in turn: 2 on average, most have 1.
_EXCHANGES = (1, 3, 1, 1, 2, 1, 4, 1, 1, 2, 1, 3, 1, 2, 1, 1)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(plan["folder"])
    chats = list(_conversations(Path(plan["data"]), is_mixed=plan["is_mixed"]))
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    rows = [encode(chat, tokenizer) for chat in chats]
    short = [index for index, row in enumerate(rows) if len(row["input_ids"]) <= plan["max_length"]]
    chats, rows = [chats[index] for index in short], [rows[index] for index in short]
    num_used = plan["num_steps"] * plan["batch_size"]
    if len(rows) < num_used:
        raise SystemExit(
            f"{plan['num_steps']} steps of {plan['batch_size']} rows need {num_used} rows, and"
            f" {plan['data']} makes {len(rows)} of at most {plan['max_length']} tokens;"
            " give a longer file or fewer steps"
        )
    order = visiting_order(len(rows), batch_size=plan["batch_size"], seed=plan["seed"])
    _write_lines(folder / "lorad.jsonl", _placed([{"messages": chat} for chat in chats], order))
    _write_lines(folder / "in_order.jsonl", rows[:num_used])
    _write_lines(folder / "grouped.jsonl", [rows[index] for index in _grouped(rows, plan)])
    _make_adapter(plan, folder)


def visiting_order(num_rows: int, *, batch_size: int, seed: int) -> list[int]:
    """Return the rows of lorad's first epoch in the order in which its sampler visits them."""
    from worker.training.sampler import Sampler

    sampler = Sampler(
        num_rows=num_rows, micro_batch_size=batch_size, accumulation_steps=1, seed=seed
    )
    num_steps = -(-num_rows // batch_size)
    return [row for step in range(1, num_steps + 1) for row in sampler.rows_of(step)]


def _placed(rows: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Return the rows so placed that a visit in `order` meets them as they were given."""
    placed: list[Any] = [None] * len(rows)
    for row, place in zip(rows, order, strict=True):
        placed[place] = row
    return placed


def _conversations(path: Path, *, is_mixed: bool) -> Iterator[Chat]:
    """Yield the conversations of a file, joined to longer ones where lengths shall be mixed."""
    with path.open() as file:
        chats = [_chat(line, number, path) for number, line in enumerate(file, 1) if line.strip()]
    if not is_mixed:
        yield from chats
        return
    remaining, turn = iter(chats), 0
    while joined := [chat for _, chat in zip(range(_EXCHANGES[turn]), remaining, strict=False)]:
        yield [message for chat in joined for message in chat]
        turn = (turn + 1) % len(_EXCHANGES)


def _chat(line: str, number: int, path: Path) -> Chat:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise SystemExit(
            f"{path}, line {number}: no `messages`; the comparison needs chat rows, one JSON"
            " object a line"
        )
    return row["messages"]


def encode(chat: Chat, tokenizer: Any) -> Row:
    """Return tokens and labels: assistant turns with their end mark are targets."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    starts, ends = np.asarray(encoded["offset_mapping"]).T
    is_target = np.zeros(len(ids), dtype=bool)
    for index, message in enumerate(chat):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(
                chat[:index], tokenize=False, add_generation_prompt=True
            )
            until = tokenizer.apply_chat_template(chat[: index + 1], tokenize=False).rstrip()
            is_target |= (ends > len(before)) & (starts < len(until))
    labels = np.where(is_target, ids, -100)
    return {"input_ids": ids, "labels": labels.tolist()}


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
    model.save_pretrained(folder / "adapter")
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
