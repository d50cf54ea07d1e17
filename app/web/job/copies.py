"""A job as a text to copy: for curl, for the terminal, and for OpenAI's client."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pprint import pformat
from typing import Any

from app.domain.openai import ids
from app.domain.spec import JobSpec
from app.web import new_job_form

# As `suffix` of a request to /v1 may be.
_LONGEST_SUFFIX = 64
_SAME_WORD = ("seed", "metadata")
_MARK = "JOB"


@dataclass(frozen=True)
class Copies:
    """Three texts that submit a job like this one."""

    curl: str
    cli: str
    sdk: str


def of_spec(spec: JobSpec, base_url: str, *, needs_key: bool) -> Copies:
    """Return the texts; `base_url` has no slash at its end."""
    given = new_job_form.keys_of(spec)
    # The mark is no line of the JSON: within a text of it, a line break is written as \\n.
    body = f"<<'{_MARK}'\n{json.dumps(given, indent=2, ensure_ascii=False)}\n{_MARK}"
    key = ' -H "authorization: Bearer $LORAD_API_KEY"' if needs_key else ""
    curl = f"curl {base_url}/jobs -H 'content-type: application/json'{key} --data-binary @- {body}"
    return Copies(curl, f"lorad submit - {body}", _sdk(spec, given, base_url))


def _sdk(spec: JobSpec, given: Mapping[str, Any], base_url: str) -> str:
    asked: dict[str, Any] = {"model": spec.base_model, "training_file": ids.show(spec.dataset.id)}
    if spec.dataset.eval_id is not None:
        asked["validation_file"] = ids.show(spec.dataset.eval_id)
    asked |= {name: given[name] for name in _SAME_WORD if name in given}
    own = {
        name: value
        for name, value in given.items()
        if name not in ("base_model", "name", "dataset", "training", *_SAME_WORD)
    }
    rows = {key: value for key, value in given["dataset"].items() if key not in ("id", "eval_id")}
    training = dict(given.get("training", {}))
    if spec.training.max_steps is None:
        # Where nothing says how long, OpenAI's default is another one.
        training["num_train_epochs"] = spec.training.num_train_epochs
    own |= {key: value for key, value in (("dataset", rows), ("training", training)) if value}
    lines = [f"    {name}={_literal(value)},\n" for name, value in asked.items()]
    if spec.name is not None and len(spec.name) <= _LONGEST_SUFFIX:
        lines.append(f"    suffix={_literal(spec.name)},\n")
    if own:
        lines.append(f"    extra_body={_literal(own)},\n")
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}/v1", api_key=os.getenv("LORAD_API_KEY", "any"))\n'
        f"job = client.fine_tuning.jobs.create(\n{''.join(lines)})\nprint(job.id)\n"
    )


def _literal(value: object) -> str:
    return pformat(value, indent=1, width=90, sort_dicts=False).replace("\n", "\n    ")
