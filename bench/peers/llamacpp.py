"""llama.cpp's greedy answers: a GGUF file and prompts come in as JSON, tokens go out as JSON.

Runs in an environment of its own, with nothing but `xllamacpp`.
"""

import json
import sys

import xllamacpp


def main() -> None:
    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = asked["gguf"]
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = asked["num_threads"]
    params.sampling.temp = 0.0
    params.warmup = False
    server = xllamacpp.Server(params)
    answers = [_answer(server, prompt, asked["num_tokens"]) for prompt in asked["prompts"]]
    sys.stdout.write("\n" + json.dumps({"answers": answers}) + "\n")


def _answer(server: xllamacpp.Server, prompt: object, num_tokens: int) -> dict[str, object]:
    """Continue a prompt, given as token ids or as text whose special tokens are read as such."""
    reply = server.handle_completions(
        {
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0.0,
            "top_k": 1,
            "repeat_penalty": 1.0,
            "cache_prompt": False,
            "logprobs": 1,
        }
    )
    (choice,) = reply["choices"]
    return {
        "tokens": [each["id"] for each in choice["logprobs"]["content"]],
        "num_prompt_tokens": reply["usage"]["prompt_tokens"],
    }


if __name__ == "__main__":
    main()
