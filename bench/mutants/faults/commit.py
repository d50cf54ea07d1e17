"""Faults in writing a checkpoint: on disk and complete, or not there at all."""

from bench.mutants.mutant import Mutant, edit

_COMMIT = "worker/training/commit.py"
_TESTS = "tests/worker/training/test_commit.py"
_SYNCED = f"{_TESTS}::test_every_file_and_both_folders_are_synced_before_the_commit_counts"

MUTANTS = (
    Mutant(
        name="fsync-of-files-skipped",
        violates="D9",
        breaks="After a power cut a committed checkpoint has empty files.",
        edits=[edit(_COMMIT, "        os.fsync(file.fileno())\n", "")],
        tests=[_SYNCED],
    ),
    Mutant(
        name="fsync-of-the-folder-skipped",
        violates="D9",
        breaks="After a power cut a committed checkpoint lacks files.",
        edits=[edit(_COMMIT, "        _sync(temporary)\n", "")],
        tests=[_SYNCED],
    ),
    Mutant(
        name="fsync-of-the-parent-skipped",
        violates="D9",
        breaks="After a power cut a committed checkpoint is not there under its name.",
        edits=[edit(_COMMIT, "    _sync(folder.parent)\n", "")],
        tests=[_SYNCED],
    ),
    Mutant(
        name="manifest-not-last",
        violates="D1",
        breaks="The manifest is on disk before the files that it lists.",
        edits=[
            edit(
                _COMMIT,
                "files = tuple(_write(temporary / name, content) for name, content in "
                "contents.items())",
                "files = tuple(\n"
                "            ManifestFile(\n"
                "                name=name,\n"
                "                bytes=len(content),\n"
                "                sha256=hashlib.sha256(content).hexdigest(),\n"
                "            )\n"
                "            for name, content in contents.items()\n"
                "        )",
            ),
            edit(
                _COMMIT,
                "        _sync(temporary)\n",
                "        for name, content in contents.items():\n"
                "            _write(temporary / name, content)\n"
                "        _sync(temporary)\n",
            ),
        ],
        tests=[_SYNCED],
    ),
    Mutant(
        name="renamed-over-a-checkpoint",
        violates="I5",
        breaks="A second save of a step replaces the first, which a row may point to.",
        edits=[
            edit(
                _COMMIT,
                "        temporary.rename(folder)\n",
                "        shutil.rmtree(folder, ignore_errors=True)\n"
                "        temporary.rename(folder)\n",
            )
        ],
        tests=[f"{_TESTS}::test_an_existing_checkpoint_is_never_overwritten"],
    ),
    Mutant(
        name="temporary-folder-stays",
        violates="D7",
        breaks="A save that fails on a full disk leaves what it wrote, so the disk stays full.",
        edits=[edit(_COMMIT, "        shutil.rmtree(temporary, ignore_errors=True)\n", "")],
        tests=[f"{_TESTS}::test_a_failure_before_the_end_leaves_nothing"],
    ),
    Mutant(
        name="written-in-place",
        violates="D1",
        breaks="A checkpoint has its final name while it is being written.",
        edits=[
            edit(
                _COMMIT,
                'temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))\n',
                "temporary = folder\n    folder.mkdir()\n",
            ),
            edit(_COMMIT, "        shutil.rmtree(temporary, ignore_errors=True)\n", ""),
        ],
        tests=[f"{_TESTS}::test_a_failure_before_the_end_leaves_nothing"],
    ),
    Mutant(
        name="hash-of-something-else",
        violates="I5",
        breaks="The manifest lists hashes that its files do not have.",
        edits=[
            edit(
                _COMMIT,
                "bytes=len(content), sha256=hashlib.sha256(content).hexdigest()",
                "bytes=len(content), sha256=hashlib.sha256(content[:-1]).hexdigest()",
            )
        ],
        tests=[f"{_TESTS}::test_what_was_committed_verifies"],
    ),
    Mutant(
        name="told-before-it-is-written",
        violates="I5",
        breaks="A checkpoint is told of while its thread is still writing it.",
        edits=[
            edit(
                "worker/training/saver.py",
                "        self._under_way = self._executor.submit(write), then\n",
                "        self._under_way = self._executor.submit(write), lambda _: None\n"
                '        then(Committed("0" * 64, 0))\n',
            )
        ],
        tests=[
            "tests/worker/training/test_saver.py"
            "::test_what_is_told_of_a_write_comes_after_it_and_from_the_training_thread"
        ],
    ),
)
