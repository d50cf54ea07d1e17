"""Rows and specs that the end-to-end tests share."""

from typing import Any

from tests.fixtures.stack import Stack

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {number} and one?"},
            {"role": "assistant", "content": f"It is {number + 1}" + ", I think" * (number % 3)},
        ]
    }
    for number in range(24)
]


def spec(stack: Stack, dataset: str, **training: Any) -> dict[str, Any]:
    (model,) = (stack.home / "models").iterdir()
    return {
        "base_model": model.name,
        "dataset": {"id": dataset},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"]},
        "training": {
            "max_steps": 20,
            "save_steps": 5,
            "save_total_limit": None,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            **training,
        },
    }


def submitted(stack: Stack, **training: Any) -> str:
    """Upload the rows and submit a job on them."""
    return stack.submit(spec(stack, stack.upload(ROWS), **training))
