"""Faults behind the endpoints that OpenAI's clients use."""

from bench.mutants.mutant import Mutant, edit

_SERVICES = "app/services/openai"
_LISTINGS = "app/db/listings.py"
_PAGES = "tests/openai/test_pages.py"
_JOBS = "tests/openai/test_jobs.py"
_LAST = f"{_PAGES}::test_the_last_page_says_that_it_is_the_last"
_OTHERS = f"{_PAGES}::test_nothing_of_another_project_is_found_listed_or_trained_on"

MUTANTS = (
    Mutant(
        name="retried-create-makes-two",
        violates="OpenAI's clients",
        breaks="A create whose answer was lost makes a second job.",
        edits=[
            edit(
                f"{_SERVICES}/fine_tuning.py",
                "    if not attempt.is_repeat:\n        return None\n",
                "    return None\n",
            )
        ],
        tests=[f"{_JOBS}::test_what_comes_again_because_no_answer_came_is_done_once"],
    ),
    Mutant(
        name="retried-create-finds-another-projects-job",
        violates="OpenAI's clients",
        breaks="A repeated create is answered with the job of another project.",
        edits=[
            edit(
                _LISTINGS,
                "        JobRow.project_id == project_id,\n        JobRow.created_at > db_now",
                "        JobRow.created_at > db_now",
            )
        ],
        tests=[f"{_PAGES}::test_a_repeated_request_finds_no_job_of_another_project"],
    ),
    *(
        Mutant(
            name=f"more-{kind}-for-ever",
            violates="OpenAI's clients",
            breaks=f"Every page of {kind} says that another one follows.",
            edits=[
                edit(f"{_SERVICES}/{module}.py", f"has_more=len({rows}) > limit", "has_more=True")
            ],
            tests=[f"{_LAST}[sqlite-{kind}]"],
        )
        for kind, module, rows in (
            ("files", "files", "keys"),
            ("jobs", "fine_tuning", "rows"),
            ("events", "events", "found"),
            ("checkpoints", "checkpoints", "found"),
        )
    ),
    Mutant(
        name="file-of-another-project",
        violates="OpenAI's clients",
        breaks="Whoever knows its id reads another project's file.",
        edits=[
            edit(
                f"{_SERVICES}/files.py",
                "dataset_queries.get(session, own_id, project_id=project_id)",
                "dataset_queries.get(session, own_id)",
            )
        ],
        tests=[_OTHERS],
    ),
    Mutant(
        name="another-projects-file-under-our-name",
        violates="OpenAI's clients",
        breaks="Whoever trains on another project's file is told of a key that they did not send.",
        edits=[
            edit(
                f"{_SERVICES}/fine_tuning.py",
                "if dataset_queries.get(session, dataset_id, project_id=project_id) is None:",
                "if dataset_queries.get(session, dataset_id) is None:",
            )
        ],
        tests=[_OTHERS],
    ),
    Mutant(
        name="cancelled-twice-is-tried-again",
        violates="OpenAI's clients",
        breaks="The client repeats a request that can never succeed.",
        edits=[edit("app/api/errors.py", '"x-should-retry": "false"', '"x-should-retry": "true"')],
        tests=[f"{_JOBS}::test_cancelling_twice_is_final_and_not_tried_again"],
    ),
    Mutant(
        name="result-file-without-its-last-step",
        violates="OpenAI's clients",
        breaks="The table of what was measured ends a step early.",
        edits=[
            edit(
                f"{_SERVICES}/results.py",
                "for step in sorted(losses.keys() | evaluations.keys()):",
                "for step in sorted(losses.keys() | evaluations.keys())[:-1]:",
            )
        ],
        tests=[
            "tests/openai/test_files.py::test_results_are_listed_among_the_files_and_read_as_csv"
        ],
    ),
)
