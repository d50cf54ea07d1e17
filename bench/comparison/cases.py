"""What is compared: two tables of work, and the systems that do it."""

from dataclasses import dataclass
from typing import Literal

Column = Literal["as_run", "given"]
"""Peers in the environment of whoever types the command, or with every variable that lorad sets."""

SEED = 42
LEARNING_RATE = 2e-4
MAX_LENGTH = 1024
"""No row of a comparison is cut: the peers' own limits are at least this."""
REFERENCE = "lorad"


@dataclass(frozen=True)
class Case:
    """One table: a model, its adapter and the batches."""

    name: str
    title: str
    batch_size: int
    rank: int
    alpha: int
    targets: tuple[str, ...] | Literal["all-linear"]
    is_mixed: bool
    """Rows are joined to conversations of one to three exchanges, so that lengths vary widely."""
    longest: int
    """Longer rows, in tokens, are left out."""


@dataclass(frozen=True)
class System:
    """One row of a table."""

    name: str
    title: str
    environment: str
    """Which virtual environment of `.cache/bench` it runs in; "" is lorad's own."""
    script: str = ""
    """Script under bench/peers."""
    variant: str = "padded"
    rows: Literal["in_order", "grouped"] = "in_order"
    is_best_flags: bool = False
    """Not what people run: shown only where everything is given to everybody."""
    is_extra: bool = False
    """Only measured when asked for by name or with `--systems all`."""

    @property
    def has_equal_batches(self) -> bool:
        return self.rows == "in_order"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return where it is measured; lorad brings its variables itself, so once is enough."""
        return ("given",) if self.is_best_flags or self.name == REFERENCE else ("as_run", "given")


CASES = {
    "1": Case(
        name="1",
        title="Rows in order, batch 4, rank 8 on q and v",
        batch_size=4,
        rank=8,
        alpha=16,
        targets=("q_proj", "v_proj"),
        is_mixed=False,
        longest=MAX_LENGTH,
    ),
    "2": Case(
        name="2",
        title="Mixed lengths, batch 8, rank 16 on every linear layer",
        batch_size=8,
        rank=16,
        alpha=32,
        targets="all-linear",
        is_mixed=True,
        # Padded, eight rows of 1,024 tokens take the peers 30 GB.
        longest=512,
    ),
}

SYSTEMS = {
    system.name: system
    for system in (
        System(REFERENCE, "lorad", environment=""),
        System("hf", "HF Trainer + PEFT, padded", "hf", script="hf_trainer.py"),
        System("trl", "TRL SFTTrainer, padded", "trl", script="trl_sft.py"),
        System(
            "trl-grouped",
            "TRL SFTTrainer, grouped by length",
            "trl",
            script="trl_sft.py",
            rows="grouped",
            is_best_flags=True,
        ),
        System("llamafactory", "LLaMA-Factory", "llamafactory", script="llamafactory_sft.py"),
        System(
            "hf-grouped",
            "HF Trainer + PEFT, grouped by length",
            "hf",
            script="hf_trainer.py",
            rows="grouped",
            is_best_flags=True,
            is_extra=True,
        ),
        System(
            "hf-flattened",
            "HF Trainer + PEFT, DataCollatorWithFlattening",
            "hf",
            script="hf_trainer.py",
            variant="flattened",
            is_best_flags=True,
            is_extra=True,
        ),
        System(
            "llamafactory-packed",
            "LLaMA-Factory, neat_packing",
            "llamafactory",
            script="llamafactory_sft.py",
            variant="packed",
            is_best_flags=True,
            is_extra=True,
        ),
    )
}


def chosen_systems(names: str | None) -> list[System]:
    """Return the systems that `--systems` means; lorad, the reference, is always the first.

    Raises:
        SystemExit: A name is unknown.
    """
    if names is None:
        return [system for system in SYSTEMS.values() if not system.is_extra]
    if names == "all":
        return list(SYSTEMS.values())
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in SYSTEMS]:
        raise SystemExit(
            f"--systems: no system is named {', '.join(unknown)}; there are {', '.join(SYSTEMS)}"
        )
    return [system for system in SYSTEMS.values() if system.name in (REFERENCE, *wanted)]
