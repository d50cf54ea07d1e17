"""Faults in the trainer: what a resume restores, what a step applies, what an evaluation moves."""

from bench.mutants.mutant import Mutant, edit

_CHECKPOINT = "worker/training/checkpoint.py"
_STATE = "worker/training/state.py"
_STEP = "worker/training/step.py"
_RUN = "worker/training/run.py"
_EVALUATE = "worker/training/evaluate.py"
_TESTS = "tests/worker/training"
_LOADING = f"{_TESTS}/test_checkpoint.py"
_CONTINUES = f"{_LOADING}::test_an_untouched_checkpoint_continues_to_the_same_adapter"
_DRAWS = f"{_TESTS}/test_evaluate.py::test_no_random_generator_moves_even_where_a_model_draws"
# What a checkpoint was loaded into is hashed again: a second net, which single faults fall into.
_UNCHECKED = edit(
    _CHECKPOINT,
    "if live != saved.tensors_sha256 or state.capture_host_rng() != saved.host_rng:",
    "if not live:",
)

MUTANTS = (
    Mutant(
        name="load-not-checked",
        violates="D4",
        breaks="What was loaded is not compared with what was saved.",
        edits=[_UNCHECKED],
        tests=[f"{_LOADING}::test_one_changed_number_is_refused_even_under_a_fitting_manifest"],
    ),
    Mutant(
        name="adapter-not-loaded",
        violates="D4",
        breaks="A resumed run silently starts with a fresh adapter.",
        edits=[_UNCHECKED, edit(_CHECKPOINT, "    _restore_weights(adapted, weights)\n", "")],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="optimizer-not-loaded",
        violates="D3",
        breaks="A resumed run silently starts with a fresh optimizer.",
        edits=[
            _UNCHECKED,
            edit(_CHECKPOINT, "    _restore_optimizer(adapted, optimizer, others)\n", ""),
        ],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="torch-rng-not-restored",
        violates="I8",
        breaks="A resumed run draws other dropout masks.",
        edits=[
            _UNCHECKED,
            edit(_CHECKPOINT, '    torch.set_rng_state(generators["rng.torch"])\n', ""),
        ],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="torch-rng-not-restored-but-checked",
        violates="I8",
        breaks="A resume does not restore torch's generator, and the check of the load sees it.",
        edits=[edit(_CHECKPOINT, '    torch.set_rng_state(generators["rng.torch"])\n', "")],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="python-rng-not-restored",
        violates="I8",
        breaks="A resume does not restore Python's generator.",
        edits=[edit(_STATE, "    random.setstate(rng.python)\n", "")],
        tests=[_CONTINUES, _DRAWS],
    ),
    Mutant(
        name="numpy-rng-not-restored",
        violates="I8",
        breaks="A resume does not restore numpy's generator.",
        edits=[edit(_STATE, "    np.random.set_state(\n", "    tuple(\n")],
        tests=[_CONTINUES, _DRAWS],
    ),
    Mutant(
        name="host-rng-not-restored-on-resume",
        violates="I8",
        breaks="A resume leaves Python's and numpy's generators where the seed put them.",
        edits=[
            edit(_CHECKPOINT, "    state.restore_host_rng(training_state.host_rng)\n", ""),
        ],
        tests=[
            "tests/worker/training/test_checkpoint.py"
            "::test_the_generators_of_the_host_go_on_where_they_were"
        ],
    ),
    Mutant(
        name="hash-check-of-the-trainer-skipped",
        violates="I5",
        breaks="The trainer loads a checkpoint whose files changed since they were verified.",
        edits=[
            edit(
                _CHECKPOINT,
                "checkpoints.verify(point.folder, manifest_sha256=point.manifest_sha256)",
                "Manifest.model_validate_json("
                "(point.folder / checkpoints.MANIFEST_NAME).read_bytes())",
            )
        ],
        tests=[f"{_LOADING}::test_a_flipped_bit_is_refused"],
    ),
    Mutant(
        name="identity-check-skipped",
        violates="D10",
        breaks="A checkpoint of another run, with other data or settings, is continued.",
        edits=[edit(_CHECKPOINT, "    state.require_same(saved.identity, identity)\n", "")],
        tests=[f"{_LOADING}::test_a_checkpoint_of_a_different_run_is_refused_naming_the_field"],
    ),
    Mutant(
        name="checkpoint-of-another-job",
        violates="D10",
        breaks="A checkpoint of another job is continued.",
        edits=[edit(_CHECKPOINT, "if manifest.job_id != job_id:", "if not manifest.job_id:")],
        tests=[f"{_LOADING}::test_a_checkpoint_of_another_job_is_refused"],
    ),
    Mutant(
        name="progress-not-restored",
        violates="I8",
        breaks="A resumed run forgets what it had learnt: counts, best loss, split.",
        edits=[
            edit(
                "worker/training/prepare.py",
                "    for name, value in saved.progress:\n"
                "        setattr(session.progress, name, value)\n",
                "    session.progress.step = saved.progress.step\n",
            )
        ],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="every-epoch-in-the-same-order",
        violates="D5",
        breaks="The order of the rows is the same in every epoch.",
        edits=[
            edit(
                "worker/training/sampler.py",
                "order = _order(self.seed, epoch, self.num_units)",
                "order = _order(self.seed, 0, self.num_units)",
            )
        ],
        tests=[
            f"{_TESTS}/test_sampler.py::test_the_order_differs_between_epochs_and_between_seeds"
        ],
    ),
    Mutant(
        name="losses-averaged",
        violates="losses per token",
        breaks="Micro-batches count the same however few targets they have.",
        edits=[
            edit(
                _STEP,
                "loss = loss_sum(batch) / num_targets",
                "loss = loss_sum(batch) / batch.num_targets / len(batches)",
            )
        ],
        tests=[f"{_TESTS}/test_step.py::test_splitting_a_step_does_not_change_it"],
    ),
    Mutant(
        name="non-finite-update-applied",
        violates="E6",
        breaks="A NaN reaches the weights.",
        edits=[
            edit(
                _STEP,
                "if not (math.isfinite(nats) and math.isfinite(norm) and math.isfinite(weight)):",
                "if nats < 0:",
            )
        ],
        tests=[
            f"{_TESTS}/test_step.py::test_a_step_that_is_not_finite_touches_no_weight_and_no_state"
        ],
    ),
    Mutant(
        name="gradients-carried-over",
        violates="I8",
        breaks="Gradients of a step are added to those of the next.",
        edits=[
            edit(
                _STEP,
                "    optimizer.step()\n    optimizer.zero_grad(set_to_none=True)\n",
                "    optimizer.step()\n",
            )
        ],
        tests=[_CONTINUES],
    ),
    Mutant(
        name="evaluation-advances-the-rng",
        violates="I8",
        breaks="How often a run evaluates changes what it learns.",
        edits=[
            edit(
                _EVALUATE,
                "with torch.random.fork_rng(devices=devices):",
                "with torch.random.fork_rng(devices=devices, enabled=False):",
            )
        ],
        tests=[_DRAWS],
    ),
    Mutant(
        name="evaluation-moves-host-generators",
        violates="I8",
        breaks="An evaluation leaves Python's and numpy's generators elsewhere.",
        edits=[edit(_EVALUATE, "        state.restore_host_rng(host)\n", "")],
        tests=[_DRAWS],
    ),
    Mutant(
        name="pause-saves-nothing",
        violates="pause",
        breaks="A paused run loses the steps since its last checkpoint.",
        edits=[
            edit(
                _RUN,
                'if reason != "cancel" and step > session.saved.step:',
                'if reason == "drain" and step > session.saved.step:',
            )
        ],
        tests=[f"{_TESTS}/test_run.py::test_a_pause_saves_the_step_it_stops_at"],
    ),
    Mutant(
        name="cancel-after-the-last-step-ignored",
        violates="I10",
        breaks="A cancel that comes after the last step lets the job succeed.",
        edits=[
            edit(
                _RUN, '    if stop_requested() == "cancel":\n', '    if session.run.job_id == "":\n'
            )
        ],
        tests=[f"{_TESTS}/test_run.py::test_a_cancel_after_the_last_step_still_counts"],
    ),
)
