"""Named sets of target modules with the rank and alpha that suit them."""

from pydantic import BaseModel, ConfigDict

ALL_LINEAR = "all-linear"


class Preset(BaseModel):
    """A named starting point for the `lora` group."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """Name to give as `preset`, or as `lora.target_modules` to take only the modules."""
    description: str
    """When to choose it."""
    target_modules: list[str] | str
    """Names of the linear layers that get an adapter; `all-linear` is all but the LM head."""
    r: int | None = None
    """Rank; null leaves the default of `lora.r`."""
    lora_alpha: int | None = None
    """Scale; null leaves the default of `lora.lora_alpha`."""


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="minimal",
            description="Queries only: the smallest. For a quick look at what the data teaches.",
            target_modules=["q_proj"],
            r=4,
            lora_alpha=8,
        ),
        Preset(
            name="standard",
            description="Queries and values, the set of the LoRA paper. A good first choice.",
            target_modules=["q_proj", "v_proj"],
            r=8,
            lora_alpha=16,
        ),
        Preset(
            name="full-attention",
            description="All four attention projections.",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            r=8,
            lora_alpha=16,
        ),
        Preset(
            name="mlp",
            description="Feed-forward up and down projections; for knowledge more than style.",
            target_modules=["up_proj", "down_proj"],
            r=8,
            lora_alpha=16,
        ),
        Preset(
            name=ALL_LINEAR,
            description="Every linear layer but the LM head: the most capacity, the most memory.",
            target_modules=ALL_LINEAR,
        ),
    )
}
