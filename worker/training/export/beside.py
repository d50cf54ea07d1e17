"""Files that lie beside an export: how to serve it, line by line."""

import json
from pathlib import Path

from app.domain.checkpoints import ADAPTER_FILES
from app.domain.exports import GGUF_NAME
from app.domain.tools import ExportRequest
from worker.training.export import merge

MODELFILE, VLLM_FILE, TEMPLATE_FILE = "Modelfile", "VLLM.txt", "chat_template.jinja"
# Ranks that vLLM has kernels for.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def write(request: ExportRequest, folder: Path) -> None:
    """Write what belongs to the format: an Ollama Modelfile, vLLM's command line, the template."""
    tokenizer = merge.tokenizer_of(request)
    template = tokenizer.chat_template
    if request.format == "adapter" and isinstance(template, str):
        (folder / TEMPLATE_FILE).write_text(template, "utf-8")
    stop = tokenizer.eos_token
    (folder / MODELFILE).write_text(
        _modelfile(request, stop if isinstance(stop, str) else None), "utf-8"
    )
    if request.format != "gguf":
        (folder / VLLM_FILE).write_text(_vllm(request, has_template=bool(template)), "utf-8")


def _modelfile(request: ExportRequest, stop: str | None) -> str:
    source = {
        "adapter": f"FROM {request.spec.base_model}\nADAPTER .",
        "merged": "FROM .",
        "gguf": f"FROM ./{GGUF_NAME}",
    }[request.format]
    lines = [
        f"# ollama create {request.name} -f {MODELFILE}",
        "# Ollama writes templates in its own language, and recognizes many of those in a model's",
        "# files. Compare `ollama show --template` with the chat template of training; where they",
        "# differ, add a TEMPLATE line here: another template is another model.",
    ]
    if request.format == "adapter":
        lines.append("# FROM must name the very model that the adapter was trained on.")
    lines.append(source)
    if stop:
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _vllm(request: ExportRequest, *, has_template: bool) -> str:
    if request.format == "merged":
        return f"vllm serve . --served-model-name {request.name}\n"
    config = json.loads((request.adapter_folder / ADAPTER_FILES[0]).read_text("utf-8"))
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    rank = next((each for each in _VLLM_RANKS if each >= max(ranks)), max(ranks))
    line = (
        f"vllm serve {request.spec.base_model} --enable-lora --max-lora-rank {rank}"
        f" --lora-modules {request.name}=."
    )
    if has_template:
        line += f" --chat-template ./{TEMPLATE_FILE}"
    refused = [
        name
        for name, used in (
            ("modules_to_save", config.get("modules_to_save")),
            ("bias", config.get("bias", "none") != "none"),
            ("DoRA", config.get("use_dora")),
        )
        if used
    ]
    if not refused:
        return line + "\n"
    why = f"# vLLM serves no adapters with {', '.join(refused)}: export this one as merged."
    return f"{why}\n# {line}\n"
