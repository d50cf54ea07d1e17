"""Answers of the base model, or of the base model with an adapter, to chat prompts."""

import time
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidModel
from app.domain.rows import Message
from app.domain.tools import GenerateRequest, GenerateResult
from worker.training import model
from worker.training.adapters import without_peft_warnings


def generate(request: GenerateRequest) -> GenerateResult:
    """Answer every prompt, taking the most likely token each time.

    Raises:
        InvalidModel: The model does not load, has no chat template, or refuses the adapter.
    """
    began = time.monotonic()
    torch.set_num_threads(request.num_threads)
    device = torch.device(request.device)
    tokenizer = model.load_tokenizer(request.model_folder)
    if not tokenizer.chat_template:
        raise InvalidModel(f"model {request.model_folder.name} has no chat template")
    loaded = _load(request, device)
    answers = [
        _answer(loaded, tokenizer, prompt, request.max_new_tokens, device)
        for prompt in request.prompts
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


@torch.inference_mode()
def _answer(
    loaded: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[Message, ...],
    max_new_tokens: int,
    device: torch.device,
) -> str:
    inputs: Any = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in prompt],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    generate_ids: Any = loaded.generate
    output = generate_ids(
        **inputs.to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    answer = tokenizer.decode(new_tokens, skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer.strip()
