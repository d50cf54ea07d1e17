"""Faults in exports: an export is the trained model again, or it fails and leaves nothing."""

from bench.mutants.mutant import Mutant, edit

_MERGE = "worker/training/export/merge.py"
_PARITY = "worker/training/export/parity.py"
_GGUF = "worker/training/export/gguf_writer.py"
_BESIDE = "worker/training/export/beside.py"
_PRODUCE = "worker/training/export/produce.py"
_EXPORTING = "app/services/exporting.py"
_MADE = "tests/exports/test_produce.py"
_SABOTAGED = "tests/exports/test_sabotage.py"
_ROWS = "tests/exports/test_exporting.py"
_MERGED = "    merged = live.attach(base, request.adapter_folder).merge_and_unload()\n"

MUTANTS = (
    Mutant(
        name="merge-forgets-scaling",
        violates="exports",
        breaks="The update is added to the base with a factor of 1 instead of alpha over rank.",
        edits=[
            edit(
                _MERGE,
                _MERGED,
                "    adapted = live.attach(base, request.adapter_folder)\n"
                "    for module in adapted.modules():\n"
                '        if isinstance(getattr(module, "scaling", None), dict):\n'
                "            module.scaling = dict.fromkeys(module.scaling, 1.0)\n"
                "    merged = adapted.merge_and_unload()\n",
            )
        ],
        tests=[f"{_MADE}::test_a_merge_keeps_what_was_trained"],
    ),
    Mutant(
        name="merge-into-the-original-base",
        violates="exports",
        breaks="An adapter that was trained on 4-bit weights is merged into others than it saw.",
        edits=[edit(_MERGE, 'if request.base == "dequantized":', 'if request.base == "":')],
        tests=[f"{_MADE}::test_a_quantized_jobs_adapter_is_merged_into_the_weights_that_it_saw"],
    ),
    Mutant(
        name="divergence-without-bound",
        violates="exports",
        breaks="An export whose distributions are far from the live adapter's counts as proven.",
        edits=[
            edit(
                _PARITY,
                "elif parity.mean_kl > bounds.max_mean_kl:",
                "elif parity.mean_kl > 1e9:",
            ),
            edit(
                _PARITY,
                "if parity.greedy_agreement < bounds.min_greedy_agreement:",
                "if parity.greedy_agreement < 0:",
            ),
        ],
        tests=[f"{_SABOTAGED}::test_one_tensor_that_was_not_merged_fails"],
    ),
    Mutant(
        name="gguf-rows-not-permuted",
        violates="exports",
        breaks="Readers of GGUF turn other pairs of numbers than training did.",
        edits=[edit(_GGUF, 'if writer.arch == "llama":', 'if writer.arch == "":')],
        tests=[f"{_MADE}::test_a_gguf_file_holds_the_trained_model"],
    ),
    Mutant(
        name="template-not-beside-the-adapter",
        violates="exports",
        breaks="An exported adapter is served with the base's template, not with its job's.",
        edits=[
            edit(
                _BESIDE,
                'if request.format == "adapter" and isinstance(template, str):',
                'if request.format == "" and isinstance(template, str):',
            )
        ],
        tests=[f"{_MADE}::test_an_exported_adapter_brings_the_template_that_its_job_had"],
    ),
    Mutant(
        name="modelfile-with-another-stop",
        violates="exports",
        breaks="Ollama does not stop where the model ends its turn.",
        edits=[edit(_BESIDE, "stop = tokenizer.eos_token\n", "stop = tokenizer.bos_token\n")],
        tests=[f"{_MADE}::test_a_modelfile_names_its_source_and_the_end_of_a_turn"],
    ),
    Mutant(
        name="exported-files-not-hashed",
        violates="exports",
        breaks="The list of an export has hashes that its files do not have.",
        edits=[edit(_PRODUCE, "sha256=hash_file(path))", 'sha256="0" * 64)')],
        tests=[f"{_MADE}::test_what_was_merged_says_nothing_of_this_machine_and_lists_its_files"],
    ),
    Mutant(
        name="export-without-its-proof",
        violates="exports",
        breaks="An export that failed its proof counts as succeeded.",
        edits=[
            edit(_EXPORTING, "if not result.parity.is_proven:", "if result.parity.num_prompts < 0:")
        ],
        tests=[f"{_ROWS}::test_a_failed_proof_fails_the_export_and_is_stored"],
    ),
    Mutant(
        name="cancelled-export-begun-again",
        violates="exports",
        breaks="An export that was cancelled is begun again when its worker dies.",
        edits=[
            edit(
                _EXPORTING,
                "    if row.cancel_requested:\n        return",
                "    if row.cancel_requested is None:\n        return",
            )
        ],
        tests=[f"{_ROWS}::test_a_cancelled_export_whose_worker_dies_is_not_begun_again"],
    ),
)
