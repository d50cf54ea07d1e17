"""The figures of the comparison: the floor, ratios, what voids a row, and the document."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench.comparison import figures, markdown
from bench.comparison.cases import SYSTEMS, chosen_systems
from bench.comparison.figures import Figures, Spread, Table, Work, summarize
from bench.comparison.floor import Shape, step_flops
from bench.comparison.processes import Run, Step
from bench.comparison.rows import conversations, placed, visiting_order

SMOLLM2 = Shape(
    num_layers=30,
    block_parameters=106_168_320,
    lora_parameters=4_884_480,
    attention_width=576,
    hidden_size=576,
    vocabulary=49_152,
)
WORK = [Work(num_targets=10, flops=1e9)] * 3


def run(
    system: str,
    seconds: float,
    *,
    number: int = 1,
    column: figures.Column = "given",
    losses: tuple[float, ...] = (2.0, 1.9, 1.8),
    num_targets: int = 10,
    rss: int = 1_000_000_000,
) -> Run:
    """Return a run of three steps; the first, which is warm-up, takes ten times as long."""
    ends = (10 * seconds, 11 * seconds, 12 * seconds)
    steps = [
        Step(index, at, loss, num_targets)
        for index, (at, loss) in enumerate(zip(ends, losses, strict=True), 1)
    ]
    cpu = ((0.0, 0.0), (20 * seconds, 40 * seconds))
    return Run(system, column, number, "", 0.0, tuple(steps), rss, cpu)


def table_of(*runs: Run) -> list[Figures]:
    work = {"in_order": WORK, "grouped": [Work(10, 2e9)] * 3}
    table = Table(runs, work, {"torch": 1e9, "oneDNN": 2e9}, num_warmup=1)
    return summarize(table, list(SYSTEMS.values()))


def test_the_floor_of_smollm2_is_the_sum_done_by_hand():
    # 512 tokens x (4 x 106.17 M + 6 x 4.88 M + 7 x 512 x 576 x 30), and a head of 4 x 49152 x 576
    # for each target: 424.7 + 29.3 + 61.9 + 113.2 = 629.1 MFLOP for each token.
    flops = step_flops(SMOLLM2, [512], 512)

    assert flops / 512 == pytest.approx(629.16e6, rel=1e-4)


def test_attention_counts_the_rows_of_a_batch_by_themselves():
    together = step_flops(SMOLLM2, [200], 50)
    apart = step_flops(SMOLLM2, [100, 100], 50)

    assert together - apart == 7 * 576 * 30 * (200**2 - 2 * 100**2)


def test_a_spread_is_a_median_between_the_extremes():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(median=3.0, low=1.0, high=10.0)


def test_warm_up_is_not_measured():
    (ours,) = table_of(run("lorad", 2.0))

    assert ours.step_seconds == Spread(2.0, 2.0, 2.0)
    assert ours.targets_per_second == Spread(5.0, 5.0, 5.0)
    assert ours.cpu_seconds == Spread(4.0, 4.0, 4.0)
    assert ours.of_floor == {"torch": 0.5, "oneDNN": 0.25}


def test_every_step_after_warm_up_counts():
    uneven = replace(
        run("lorad", 1.0), steps=(Step(1, 9, 2, 10), Step(2, 10, 2, 10), Step(3, 13, 2, 10))
    )

    (ours,) = table_of(uneven)

    assert ours.step_seconds == Spread(median=2.0, low=1.0, high=3.0)
    assert ours.targets_per_second == Spread(5.0, 5.0, 5.0)


def test_ratios_are_taken_round_by_round():
    rounds = [
        run("lorad", 1.0, number=1),
        run("trl", 2.0, number=1),
        run("lorad", 4.0, number=2),
        run("trl", 12.0, number=2),
        run("lorad", 1.0, number=3),
        run("trl", 5.0, number=3),
    ]

    _, theirs = table_of(*rounds)

    assert theirs.times_slower == Spread(median=3.0, low=2.0, high=5.0)
    assert theirs.num_rounds == 3


def test_other_batches_are_compared_by_the_work_in_them():
    _, grouped = table_of(run("lorad", 1.0), run("trl-grouped", 3.0, losses=(5.0, 5.0, 5.0)))

    assert grouped.times_slower == Spread(1.5, 1.5, 1.5)
    assert grouped.loss_difference is None
    assert not grouped.problem


@pytest.mark.parametrize(("loss", "counts"), [(1.8 * 1.00009, True), (1.8 * 1.00011, False)])
def test_a_row_counts_up_to_a_relative_difference_of_1e_4_in_any_step(loss: float, counts: bool):
    _, theirs = table_of(run("lorad", 1.0), run("trl", 2.0, losses=(2.0, 1.9, loss)))

    assert (not theirs.problem) is counts
    assert (theirs.times_slower is not None) is counts


def test_a_loss_that_is_not_a_number_voids_the_row():
    _, theirs = table_of(run("lorad", 1.0), run("trl", 2.0, losses=(math.nan, 1.9, 1.8)))

    assert theirs.problem.startswith("void: losses differ")


def test_a_row_that_trained_on_other_targets_is_void():
    _, theirs = table_of(run("lorad", 1.0), run("trl", 2.0, num_targets=9))

    assert theirs.problem == ("void: trained on 9 targets in step 1, where the rows have 10")


def test_a_failed_run_is_shown_with_its_reason():
    failed = Run("trl", "given", 1, problem="exit 1 after 0 steps: no disk")

    _, theirs = table_of(run("lorad", 1.0), failed)

    assert theirs.problem == "failed: exit 1 after 0 steps: no disk"


def test_the_markdown_has_a_line_for_each_system_and_says_what_is_void():
    peers = [
        run("trl", 3.0, column="as_run", rss=2_000_000_000),
        run("trl", 2.0, rss=2_000_000_000),
        run("llamafactory", 2.0, column="as_run", losses=(2.0, 1.9, 1.0)),
    ]
    facts = {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": "a machine",
        "num_threads": 2,
        "model": "m",
        "data": "d",
        "num_rounds": 1,
        "num_measured": 2,
        "num_warmup": 1,
        "versions": {"lorad": {"torch": "1"}},
        "gflops": {"torch": {"median": 100.0, "low": 90.0, "high": 110.0}},
        "skipped": {"hf": "no network"},
    }

    text = markdown.section("A title", facts, table_of(run("lorad", 1.0), *peers))

    trl = next(line for line in text.splitlines() if line.startswith("| TRL SFTTrainer, padded"))
    assert [cell.strip() for cell in trl.split("|")[2:-1]] == [
        "3 (3-3)",
        "3.00x (3.00-3.00)",
        "5 (5-5)",
        "2.00x (2.00-2.00)",
        "2.00",
        "4.00",
        "0.50 / 0.25",
        "2.00 GB",
        "0.50",
        "0e+00",
    ]
    assert "- LLaMA-Factory, as people run it: void: losses differ from lorad's by 4.4e-01" in text
    assert "- HF Trainer + PEFT, padded: not measured: no network" in text
    assert "2026-01-02, a machine, 2 threads" in text


def test_a_new_table_takes_the_place_of_the_old_one_and_nothing_else():
    once = markdown.placed("# Title\n", "1", "first\n")
    twice = markdown.placed(once, "2", "second\n") + "\nwritten by hand\n"

    again = markdown.placed(twice, "1", "changed\n")

    assert again == twice.replace("first", "changed")
    assert again.startswith("# Title\n")


def test_lorad_is_measured_whoever_is_asked_for():
    assert [system.name for system in chosen_systems("trl")] == ["lorad", "trl"]
    with pytest.raises(SystemExit, match="axolotl"):
        chosen_systems("axolotl")


def test_lorad_visits_the_placed_rows_in_the_order_of_the_file():
    order = visiting_order(10, batch_size=4, seed=42)

    rows = placed("abcdefghij", order)

    assert "".join(rows) != "abcdefghij"
    assert "".join(rows[place] for place in order) == "abcdefghij"


def test_mixed_conversations_hold_every_exchange_once_and_vary_in_length(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": str(n)}]}) for n in range(20)]
    file.write_text("\n".join(lines))

    chats = list(conversations(file, is_mixed=True))

    assert [message["content"] for chat in chats for message in chat] == list(map(str, range(20)))
    assert [len(chat) for chat in chats[:7]] == [1, 2, 1, 1, 3, 1, 1]


def test_a_row_that_is_no_conversation_is_named(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": []}\n{"text": "plain"}\n')

    with pytest.raises(SystemExit, match="line 2: no `messages`"):
        list(conversations(file, is_mixed=False))
