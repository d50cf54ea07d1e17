"""What the proof of an export does not look at is right too: labels, licences, other tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf.constants import LlamaFileType, TokenType
from gguf.gguf_reader import GGUFReader

from app.domain.errors import InvalidModel
from app.domain.exports import GGUF_NAME
from app.domain.runs import RunFile
from tests.exports import models as small
from tests.exports.conftest import request_for
from worker.training.export import live, merge, produce

Trained = Callable[..., RunFile]


@pytest.mark.parametrize(
    ("dtype", "label", "stored"),
    [("f16", LlamaFileType.MOSTLY_F16, "F16"), ("q8_0", LlamaFileType.MOSTLY_Q8_0, "Q8_0")],
)
def test_a_gguf_file_is_labelled_as_what_it_is(
    trained: Trained, folder: Path, dtype: str, label: LlamaFileType, stored: str
):
    produce.write(request_for(trained(), format="gguf", dtype=dtype), folder, dtype=dtype)

    reader = GGUFReader(folder / GGUF_NAME)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert fields["general.file_type"] == label
    assert (types["blk.0.attn_q.weight"], types["output_norm.weight"]) == (stored, "F32")
    tokenizer = small.tokenizer()
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    specials = {tokenizer.convert_tokens_to_ids(each) for each in small.SPECIALS}
    kinds = fields["tokenizer.ggml.token_type"]
    found = {number for number, kind in enumerate(kinds) if kind == TokenType.CONTROL}
    assert found == specials


def test_a_merged_model_brings_the_licence_of_its_base(
    trained: Trained, folder: Path, models: dict[str, Path]
):
    licence = models["llama"] / "LICENSE"
    request = request_for(trained())

    licence.write_text("as it is")
    try:
        merge.save_tokenizer(request, folder)
    finally:
        licence.unlink()

    assert (folder / "LICENSE").read_text() == "as it is"


def test_a_tokenizer_that_makes_other_tokens_fails(trained: Trained, folder: Path):
    request = request_for(trained())
    said = live.listen(request, live.load(request, request.adapter_folder))
    produce.write(request, folder, dtype="float32")
    tokenizer = small.tokenizer()
    tokenizer.add_tokens(["capital", "animals"])
    tokenizer.save_pretrained(folder)

    proof = produce.prove(request, folder, said, dtype="float32")

    assert proof.problems == ("its tokenizer makes other tokens of the prompts",)


def test_an_adapter_that_is_another_file_fails(trained: Trained, folder: Path):
    request = request_for(trained(), format="adapter")
    said = live.listen(request, live.load(request, request.adapter_folder))
    produce.write(request, folder, dtype="float32")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text() + "\n")

    with pytest.raises(InvalidModel, match=r"adapter_config\.json is not what") as caught:
        produce.prove(request, folder, said, dtype="float32")

    assert caught.value.code == "parity_failed"
