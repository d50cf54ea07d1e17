"""Answers of the base model, or of the base model with an adapter, to chat prompts."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidInput, InvalidModel
from app.domain.rows import Message
from app.domain.tools import GenerateRequest, GenerateResult
from worker.training import model
from worker.training.adapters import without_peft_warnings


def generate(request: GenerateRequest) -> GenerateResult:
    """Answer every prompt, taking the most likely token each time.

    Raises:
        InvalidInput: A prompt and its answer would be longer than what the model was made for.
        InvalidModel: The model does not load, has no chat template, or refuses the adapter.
    """
    began = time.monotonic()
    torch.set_num_threads(request.num_threads)
    device = torch.device(request.device)
    tokenizer = model.load_tokenizer(request.model_folder)
    if not tokenizer.chat_template:
        raise InvalidModel(f"model {request.model_folder.name} has no chat template")
    inputs = [_tokens(tokenizer, prompt) for prompt in request.prompts]
    _require_room(inputs, request)
    loaded = _load(request, device)
    answers = [
        _answer(loaded, tokenizer, each.to(device), request.max_new_tokens) for each in inputs
    ]
    return GenerateResult(answers=tuple(answers), seconds=time.monotonic() - began)


def _load(request: GenerateRequest, device: torch.device) -> PreTrainedModel | PeftModel:
    base = model.load_plain(
        request.model_folder,
        dtype=model.resolve_dtype(request.dtype, device=device.type),
        device=device,
        quantization=request.quantization,
    )
    if request.adapter_folder is None:
        return base.eval()
    try:
        with without_peft_warnings():
            adapted = PeftModel.from_pretrained(base, request.adapter_folder, local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InvalidModel(f"the adapter does not load on this model: {error}") from error
    return adapted.eval()


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: tuple[Message, ...]) -> Any:
    return tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in prompt],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def _require_room(inputs: Sequence[Any], request: GenerateRequest) -> None:
    """Refuse what the model has no positions for, before its weights are loaded."""
    context = model.context_length(request.model_folder)
    for index, each in enumerate(inputs):
        num_tokens = each["input_ids"].shape[1]
        if context is not None and num_tokens + request.max_new_tokens > context:
            raise InvalidInput(
                f"the conversation has {num_tokens} tokens, and max_new_tokens"
                f" {request.max_new_tokens} more are beyond the {context} that the model was made"
                " for; shorten it",
                param=f"messages.{index}",
                code="context_length_exceeded",
            )


@torch.inference_mode()
def _answer(
    loaded: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Any,
    max_new_tokens: int,
) -> str:
    generate_ids: Any = loaded.generate
    output = generate_ids(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    answer = tokenizer.decode(new_tokens, skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer.strip()
