"""The live adapter: the base model as training had it, with the adapter that PEFT puts on it."""

import re
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from app.domain.errors import InvalidModel
from app.domain.tools import ExportRequest
from worker.training import model
from worker.training.adapters import without_peft_warnings
from worker.training.export import parity, probe
from worker.training.templates import Template

CPU = torch.device("cpu")


def load(request: ExportRequest, adapter_folder: Path) -> PeftModel:
    """Load the base model in its training quantization, and an adapter on it.

    Raises:
        InvalidModel: One of them does not load.
    """
    base = model.load_plain(
        request.model_folder,
        dtype=torch_dtype(request),
        device=CPU,
        quantization=request.spec.quantization,
    )
    return attach(base, adapter_folder)


def torch_dtype(request: ExportRequest) -> torch.dtype:
    """Return the data type that training computed in."""
    return getattr(torch, request.live_dtype)


def attach(base: PreTrainedModel, adapter_folder: Path) -> PeftModel:
    """Put a saved adapter on a model, for evaluation.

    Raises:
        InvalidModel: It does not fit.
    """
    try:
        with without_peft_warnings(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            adapted = PeftModel.from_pretrained(base, adapter_folder, local_files_only=True)
    except UserWarning as missing:
        # PEFT goes on with what it would train from: the model without the adapter.
        first = re.search(r"'([^']+)'", str(missing))
        raise InvalidModel(
            "the adapter does not belong to this model: it lacks"
            f" {first[1] if first else 'tensors'}"
        ) from missing
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(f"the adapter does not load on this model: {error}") from error
    return adapted.eval()


def listen(request: ExportRequest, adapted: PeftModel) -> parity.Live:
    """Let the live adapter answer the fixed prompts, rendered as training rendered."""
    tokenizer = model.load_tokenizer(request.model_folder)
    rendered = probe.renderings(Template(tokenizer, request.spec.dataset.chat_template))
    prompts = probe.prompt_tokens(tokenizer, rendered)
    tracks = probe.answer(adapted, prompts, ends=probe.end_tokens(tokenizer, adapted))
    return parity.Live(tracks, probe.distributions(adapted, tracks), rendered, prompts)
