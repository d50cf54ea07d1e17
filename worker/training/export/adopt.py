"""A PEFT adapter from elsewhere becomes a model: looked at, merged into its base, and proven."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from app.domain.checkpoints import ADAPTER_FILES
from app.domain.errors import InvalidModel
from app.domain.exports import Bounds
from app.domain.model_folder import PICKLE_SUFFIXES
from worker.training import model
from worker.training.export import live, parity, probe
from worker.training.templates import Template

_BOUNDS = Bounds(name="imported-adapter", min_greedy_agreement=0.99, max_mean_kl=1e-4)
# What a LoRA adapter is made of. Everything else in its configuration is left out, or refused.
_KEPT = (
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
# These change what the adapter computes, and none of it is merged here.
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
)


def adopt(source: Path, base_folder: Path, folder: Path) -> None:
    """Write the merged model into `folder`.

    Raises:
        InvalidModel: The adapter is unsafe, does not fit the base, or is not what was written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    scrubbed = Path(tempfile.mkdtemp(prefix=".tmp-adapter-", dir=folder.parent))
    try:
        _scrub(source, scrubbed)
        adapted = _load(base_folder, scrubbed)
        tokenizer = model.load_tokenizer(base_folder)
        rendered = probe.renderings(Template(tokenizer))
        prompts = probe.prompt_tokens(tokenizer, rendered)
        tracks = probe.answer(adapted, prompts, ends=probe.end_tokens(tokenizer, adapted))
        said = parity.Live(tracks, probe.distributions(adapted, tracks), rendered, prompts)
        merged = adapted.merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        merged.config.name_or_path = tokenizer.name_or_path = folder.name
        merged.save_pretrained(folder, max_shard_size="5GB")
        tokenizer.save_pretrained(folder)
    finally:
        shutil.rmtree(scrubbed, ignore_errors=True)
    _prove(folder, said)


def _scrub(source: Path, target: Path) -> None:
    """Copy an adapter's weights and what is known of its configuration."""
    pickled = [path.name for path in source.iterdir() if path.name.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise InvalidModel(f"{pickled[0]} may be pickled, which can run code; use safetensors")
    weights = source / ADAPTER_FILES[1]
    if not weights.is_file():
        raise InvalidModel(f"{weights.name} is missing; only safetensors adapters are taken in")
    try:
        config: Any = json.loads((source / ADAPTER_FILES[0]).read_text("utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"{ADAPTER_FILES[0]} is not readable: {error}") from error
    if kind != "LORA":
        raise InvalidModel(f"the adapter is of the kind {str(kind)[:40]!r}; only LORA is taken in")
    used = [name for name in _REFUSED if config.get(name)]
    if used:
        raise InvalidModel(f"the adapter uses {used[0]}, which is not available in this version")
    kept = {name: config[name] for name in _KEPT if name in config}
    kept |= {"task_type": "CAUSAL_LM", "inference_mode": True}
    (target / ADAPTER_FILES[0]).write_text(json.dumps(kept), "utf-8")
    shutil.copyfile(weights, target / weights.name)


def _load(base_folder: Path, adapter: Path) -> PeftModel:
    """Put the adapter on its base, and check that every tensor of it arrived."""
    base = model.load_plain(base_folder, dtype=torch.float32, device=live.CPU)
    try:
        names = load_file(adapter / ADAPTER_FILES[1]).keys()
    except SafetensorError as error:
        raise InvalidModel(f"{ADAPTER_FILES[1]} is not readable: {error}") from error
    adapted = live.attach(base, adapter)
    # Without the argument peft would look the base model up to see whether its vocabulary grew.
    known = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    known |= {name for name, _ in adapted.named_parameters() if name.endswith(".bias")}
    if unexpected := sorted(names - known):
        raise InvalidModel(
            f"the adapter does not belong to {base_folder.name}: there is no place for"
            f" {unexpected[0]}, which would be ignored in silence"
        )
    return adapted


def _prove(folder: Path, said: parity.Live) -> None:
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = model.load_tokenizer(folder)
    rendered = probe.renderings(Template(tokenizer))
    proof = parity.compare(
        said,
        probe.distributions(read.eval(), said.tracks),
        renderings=rendered,
        prompts=probe.prompt_tokens(tokenizer, rendered),
        bounds=_BOUNDS,
    )
    if not proof.is_proven:
        raise InvalidModel(f"the merged model is another one: {'; '.join(proof.problems)}")
