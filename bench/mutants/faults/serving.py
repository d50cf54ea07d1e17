"""Faults in answers of models: who answers, how tokens are chosen, and what is told of them."""

from bench.mutants.mutant import Mutant, edit

_ENGINE = "worker/training/inference/engine.py"
_ANSWERS = "worker/training/inference/answers.py"
_BATCHES = "worker/training/inference/batches.py"
_PROMPTS = "worker/training/inference/prompts.py"
_SAMPLING = "worker/training/inference/sampling.py"
_SHELF = "worker/training/inference/shelf.py"
_NAMES = "app/services/named_models.py"
_PATH = "tests/worker/inference"
_NAMED = "tests/chat/test_names.py"

MUTANTS = (
    Mutant(
        name="best-answers-as-latest",
        violates="answers",
        breaks="Whoever asks the best checkpoint is answered by the newest one.",
        edits=[
            edit(
                _NAMES,
                "found = checkpoints.get(db, project_id, job_id, which)",
                "found = checkpoints.get(\n"
                '        db, project_id, job_id, "latest" if which == "best" else which\n'
                "    )",
            )
        ],
        tests=[f"{_NAMED}::test_every_name_of_a_job_finds_its_own_adapter"],
    ),
    Mutant(
        name="adapters-share-a-name",
        violates="answers",
        breaks="A host that has one checkpoint of a job answers with it for all of them.",
        edits=[edit(_NAMES, "Adapter(name=found.id,", "Adapter(name=job_id,")],
        tests=[f"{_NAMED}::test_every_name_of_a_job_finds_its_own_adapter"],
    ),
    Mutant(
        name="base-of-another-project-answers",
        violates="answers",
        breaks="The base of a job answers with its template, no matter whose job it is.",
        edits=[
            edit(
                _NAMES,
                "jobs.require(session, project_id, job_id).spec)",
                'jobs.require(session, "default", job_id).spec)',
            )
        ],
        tests=[f"{_NAMED}::test_another_project_does_not_find_it"],
    ),
    Mutant(
        name="adapters-never-dropped",
        violates="answers",
        breaks="A host keeps every adapter that it was ever asked for, until memory ends.",
        edits=[
            edit(_SHELF, "while len(self._attached) > self._most:", "while self._most < 0:"),
        ],
        tests=[f"{_PATH}/test_shelf.py::test_the_adapter_that_was_not_used_for_longest_is_dropped"],
    ),
    Mutant(
        name="tools-not-written",
        violates="answers",
        breaks="A model is not told of the tools that its template would write.",
        edits=[edit(_PROMPTS, "prompt.messages, prompt.tools)", "prompt.messages, ())")],
        tests=[
            f"{_PATH}/test_prompts.py::test_a_question_is_written_with_its_own_template_and_tools"
        ],
    ),
    Mutant(
        name="cancelled-request-keeps-its-memory",
        violates="answers",
        breaks="What was cancelled holds its place, and the next long request waits for ever.",
        edits=[edit(_ENGINE, "        self._reserved.pop(request_id, None)\n", "")],
        tests=[f"{_PATH}/test_engine.py::test_a_cancelled_request_gives_its_memory_to_the_next"],
    ),
    Mutant(
        name="padding-attended-to",
        violates="answers",
        breaks="An answer depends on how long the others beside it are.",
        edits=[
            edit(
                _BATCHES,
                "return torch.arange(width + 1, device=device)[None] >= first_B1",
                "return torch.arange(width + 1, device=device)[None] >= 0 * first_B1",
            )
        ],
        tests=[f"{_PATH}/test_engine.py::test_padding_takes_no_attention"],
    ),
    Mutant(
        name="temperature-without-effect",
        violates="answers",
        breaks="Every temperature but 0 is 1.",
        edits=[edit(_SAMPLING, "logits_V.max()) / self._temperature)", "logits_V.max()))")],
        tests=[f"{_PATH}/test_sampling.py::test_temperature_divides_the_logits"],
    ),
    Mutant(
        name="tokens-from-nan",
        violates="answers",
        breaks="A broken adapter answers with any token instead of an error.",
        edits=[edit(_SAMPLING, "if not finite[row]\n", "if finite[row] < 0\n")],
        tests=[f"{_PATH}/test_sampling.py::test_from_logits_that_are_not_finite_nothing_is_chosen"],
    ),
    Mutant(
        name="end-of-a-text-lost",
        violates="answers",
        breaks="Text that could have become a stop is missing at the end of an answer.",
        edits=[edit(_ANSWERS, "            shown += self._stops.flush()\n", "            pass\n")],
        tests=[
            f"{_PATH}/test_answers.py::test_text_that_could_have_become_a_stop_is_told_at_the_end"
        ],
    ),
    Mutant(
        name="end-of-turn-not-counted",
        violates="answers",
        breaks="Usage lacks the token that ended the answer.",
        edits=[
            edit(
                _ANSWERS,
                "        self._num_tokens += 1\n",
                "        self._num_tokens += token not in self._ends\n",
            )
        ],
        tests=[f"{_PATH}/test_answers.py::test_the_end_of_turn_is_counted_and_not_told"],
    ),
    Mutant(
        name="one-token-too-many",
        violates="answers",
        breaks="Answers have a token more than max_tokens.",
        edits=[
            edit(
                _ANSWERS,
                "if self._num_tokens == self._most_tokens:",
                "if self._num_tokens > self._most_tokens:",
            )
        ],
        tests=[
            f"{_PATH}/test_answers.py::test_text_that_could_have_become_a_stop_is_told_at_the_end"
        ],
    ),
)
