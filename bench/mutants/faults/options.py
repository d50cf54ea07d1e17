"""Faults in what a job may choose: adapters, optimizers, plans, and saving beside the training."""

from bench.mutants.mutant import Mutant, edit

_ADAPTERS = "worker/training/adapters.py"
_OPTIM = "worker/training/optim.py"
_SAVER = "worker/training/saver.py"
_HEALING = "worker/training/healing.py"
_WARNINGS = "worker/training/planned_warnings.py"
_TESTS = "tests/worker/training"
_OF_ADAPTERS = f"{_TESTS}/test_adapters.py"
_OF_OPTIM = f"{_TESTS}/test_optim.py"
_OF_SAVER = f"{_TESTS}/test_saver.py"
_WARNED = f"{_TESTS}/test_planning.py::test_what_is_hardly_meant_is_warned_of"

MUTANTS = (
    Mutant(
        name="8-bit-maps-not-saved",
        violates="I8",
        breaks="8-bit moments are saved without the maps that they are indices into.",
        edits=[
            edit(
                _OPTIM,
                "        for key, value in optimizer.state.get(parameter, {}).items():\n",
                "        for key, value in optimizer.state.get(parameter, {}).items():\n"
                "            if key in _SHARED:\n"
                "                continue\n",
            )
        ],
        tests=[
            f"{_OF_OPTIM}::test_moments_of_8_bits_are_saved_with_the_maps_they_are_indices_into",
        ],
    ),
    Mutant(
        name="8-bit-is-32-bit",
        violates="a key that is accepted works",
        breaks="adamw_8bit is quietly the usual AdamW.",
        edits=[edit(_OPTIM, 'if kind == "adamw_torch":', "if kind:")],
        tests=[
            f"{_OF_OPTIM}::test_moments_of_8_bits_are_saved_with_the_maps_they_are_indices_into",
        ],
    ),
    Mutant(
        name="weight-decay-dropped",
        violates="a key that is accepted works",
        breaks="training.weight_decay changes nothing.",
        edits=[
            edit(
                _OPTIM,
                "lr=0.0, weight_decay=weight_decay, fused=fused)",
                "lr=0.0, weight_decay=0.0, fused=fused)",
            )
        ],
        tests=[f"{_OF_OPTIM}::test_each_step_sets_its_own_learning_rate"],
    ),
    Mutant(
        name="warmup-rounded-down",
        violates="the schedule is transformers'",
        breaks="A share of steps to warm up is rounded down.",
        edits=[edit(_OPTIM, "math.ceil(total_steps * warmup)", "int(total_steps * warmup)")],
        tests=[f"{_OF_OPTIM}::test_warmup_below_one_is_a_fraction_of_all_steps_rounded_up"],
    ),
    Mutant(
        name="paging-not-told",
        violates="nothing is silent",
        breaks="A paged optimizer runs unpaged without a word.",
        edits=[
            edit(
                "worker/training/prepare.py",
                'if kind == "paged_adamw_8bit" and not optim.has_paging(session.device):',
                "if False:",
            )
        ],
        tests=[f"{_OF_OPTIM}::test_paging_where_there_is_none_is_noted_and_changes_nothing"],
    ),
    Mutant(
        name="rslora-ignored",
        violates="a key that is accepted works",
        breaks="use_rslora changes nothing.",
        edits=[edit(_ADAPTERS, "use_rslora=spec.use_rslora,", "use_rslora=False,")],
        tests=[f"{_OF_ADAPTERS}::test_rslora_scales_by_the_root_of_the_rank"],
    ),
    Mutant(
        name="dora-ignored",
        violates="a key that is accepted works",
        breaks="use_dora changes nothing.",
        edits=[edit(_ADAPTERS, "use_dora=spec.use_dora,", "use_dora=False,")],
        tests=[
            f"{_OF_ADAPTERS}::test_dora_trains_the_length_of_each_row_beside_its_direction",
        ],
    ),
    Mutant(
        name="rank-pattern-ignored",
        violates="a key that is accepted works",
        breaks="rank_pattern changes nothing.",
        edits=[
            edit(
                _ADAPTERS,
                'rank_pattern=_pattern(names, spec.rank_pattern, param="lora.rank_pattern"),',
                "rank_pattern={},",
            )
        ],
        tests=[
            f"{_OF_ADAPTERS}::test_patterns_give_layers_a_rank_and_an_alpha_of_their_own_and_the_longest_name_wins",
        ],
    ),
    Mutant(
        name="modules-to-save-ignored",
        violates="a key that is accepted works",
        breaks="modules_to_save trains nothing.",
        edits=[
            edit(
                _ADAPTERS,
                "modules_to_save=_modules_to_save(model, spec.modules_to_save, names),",
                "modules_to_save=None,",
            )
        ],
        tests=[f"{_OF_ADAPTERS}::test_a_module_to_save_is_trained_in_full_and_only_it"],
    ),
    Mutant(
        name="preset-that-misses-is-taken",
        violates="nothing is silent",
        breaks="Names that match no layer are passed over.",
        edits=[
            edit(
                _ADAPTERS,
                '    if missing:\n        raise NoMatchingLayers(\n            f"no linear',
                '    if not wanted:\n        raise NoMatchingLayers(\n            f"no linear',
            )
        ],
        tests=[
            f"{_OF_ADAPTERS}::test_one_wrong_name_among_right_ones_is_an_error_too",
        ],
    ),
    Mutant(
        name="initial-weights-not-seeded",
        violates="I8",
        breaks="The initial adapter depends on what torch drew before.",
        edits=[edit(_ADAPTERS, "        torch.manual_seed(seed)\n", "")],
        tests=[f"{_OF_ADAPTERS}::test_the_initial_weights_depend_on_the_seed_alone"],
    ),
    Mutant(
        name="snapshot-is-no-copy",
        violates="I5",
        breaks="A checkpoint written beside the training holds what the next steps made of it.",
        edits=[edit(_SAVER, "        return tensor.clone()\n", "        return tensor\n")],
        tests=[f"{_OF_SAVER}::test_a_copy_keeps_its_values_when_the_original_changes"],
    ),
    Mutant(
        name="checkpoint-told-before-it-is-written",
        violates="I5",
        breaks="A checkpoint is reported while it is still being written.",
        edits=[
            edit(
                _SAVER,
                "        (future, then), self._under_way = self._under_way, None\n"
                "        then(future.result())\n",
                "        (future, then), self._under_way = self._under_way, None\n"
                "        then(future.result() if future.done() else None)\n",
            )
        ],
        tests=[
            f"{_OF_SAVER}::test_what_is_told_of_a_write_comes_after_it_and_from_the_training_thread",
        ],
    ),
    Mutant(
        name="failed-write-is-swallowed",
        violates="nothing is silent",
        breaks="A checkpoint that could not be written is passed over.",
        edits=[
            edit(
                _SAVER,
                "        then(future.result())\n",
                "        if future.exception() is None:\n            then(future.result())\n",
            )
        ],
        tests=[f"{_OF_SAVER}::test_a_write_that_failed_is_told_to_the_training"],
    ),
    Mutant(
        name="probe-draws",
        violates="the probe has no effect on order or random numbers",
        breaks="What the probe drew is not taken back.",
        edits=[
            edit(
                _HEALING,
                "    session.optimizer.zero_grad(set_to_none=True)\n"
                "    generators.restore(session.device)\n",
                "    session.optimizer.zero_grad(set_to_none=True)\n",
            )
        ],
        tests=[
            f"{_TESTS}/test_healing.py::test_the_probe_changes_nothing",
            f"{_TESTS}/test_healing.py::test_what_a_failed_try_left_behind_does_not_reach_the_step",
        ],
    ),
    Mutant(
        name="warm-up-that-learns-nothing",
        violates="nothing is silent",
        breaks="A plan does not warn of a learning rate that is always 0.",
        edits=[
            edit(_WARNINGS, "    if not any(schedule.learning_rate(step) > 0", "    if any(False")
        ],
        tests=[_WARNED],
    ),
    Mutant(
        name="useless-packing-not-told",
        violates="nothing is silent",
        breaks="A plan does not warn of packing that packs nothing.",
        edits=[edit(_WARNINGS, "if spec.training.packing and", "if False and")],
        tests=[_WARNED],
    ),
    Mutant(
        name="context-not-looked-at",
        violates="nothing is silent",
        breaks="Rows longer than the model's context are trained on without a word.",
        edits=[edit("worker/training/data.py", "    if num_beyond:\n", "    if False:\n")],
        tests=[f"{_TESTS}/test_data.py::test_rows_beyond_the_context_of_the_model_are_told_of"],
    ),
)
