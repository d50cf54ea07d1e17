"""Fine-tune and chat through OpenAI's own client: only the base URL is another one.

Start the service and run this beside it:

    lorad models add smollm2
    lorad up
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=any python examples/openai_sdk.py
"""

# ruff: noqa: T201 (an example prints what happens)

import time
from pathlib import Path

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.fine_tuning import FineTuningJob

MODEL = "smollm2-135m-instruct"
DATA = Path(__file__).parent / "data" / "lighthouse.jsonl"
OURS = {"training": {"max_steps": 12, "save_steps": 4}, "lora": {"r": 8}}
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
_ENDED = ("succeeded", "failed", "cancelled", "paused")


def main() -> None:
    """Upload, train, pause, resume, and talk to what came out."""
    client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY say where and who
    file = client.files.create(file=DATA, purpose="fine-tune")
    client.files.wait_for_processing(file.id)
    print(f"uploaded {file.filename}: {file.id}, {file.bytes} bytes")

    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        suffix="keeper",
        seed=42,
        metadata={"example": "openai_sdk"},
        extra_body=OURS,
    )
    print(f"created {job.id}: {job.status}")
    seen: set[str] = set()
    job = pause_and_resume(client, job, seen)
    job = follow(client, job.id, seen)
    print(f"{job.id} {job.status}: {job.fine_tuned_model}, {job.trained_tokens} tokens trained on")
    if job.fine_tuned_model is None:
        raise SystemExit(job.error.message if job.error else job.status)
    for result in job.result_files:
        print(client.files.content(result).text)
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        print(f"checkpoint {checkpoint.id}: {checkpoint.fine_tuned_model_checkpoint}")
    chat(client, MODEL)
    chat(client, job.fine_tuned_model)


def pause_and_resume(client: OpenAI, job: FineTuningJob, seen: set[str]) -> FineTuningJob:
    """Pause a job once it has done a step, and let it go on from where it stopped."""
    while not has_done_a_step(client, job.id):
        time.sleep(0.2)
    client.fine_tuning.jobs.pause(job.id)
    job = follow(client, job.id, seen)
    if job.status in ("succeeded", "failed", "cancelled"):
        return job  # it was faster than we were
    print(f"{job.id} is paused; it goes on from its newest checkpoint")
    return client.fine_tuning.jobs.resume(job.id)


def has_done_a_step(client: OpenAI, job_id: str) -> bool:
    if client.fine_tuning.jobs.retrieve(job_id).status in _ENDED:
        return True
    events = client.fine_tuning.jobs.list_events(job_id, limit=10).data
    return any(event.type == "metrics" for event in events)


def follow(client: OpenAI, job_id: str, seen: set[str]) -> FineTuningJob:
    """Print the events of a job as they come in, until it ends or is paused."""
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        events = client.fine_tuning.jobs.list_events(job_id, limit=50).data
        for event in reversed([each for each in events if each.id not in seen]):
            print(f"  {event.message}")
            seen.add(event.id)
        if job.status in _ENDED:
            return job
        time.sleep(0.5)


def chat(client: OpenAI, model: str) -> None:
    """Ask a model, and print its answer while it is made."""
    print(f"{model}:", end=" ", flush=True)
    chunks = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=60, temperature=0, stream=True
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
