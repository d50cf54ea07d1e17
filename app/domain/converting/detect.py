"""Which tool a configuration is of, and its conversion."""

from collections.abc import Mapping
from typing import Any, Literal

from app.domain.converting import axolotl, llamafactory
from app.domain.converting.draft import Conversion
from app.domain.errors import InvalidInput

Tool = Literal["axolotl", "llamafactory"]
# Keys that only one of the tools has.
_SIGNS: Mapping[Tool, frozenset[str]] = {
    "axolotl": frozenset(axolotl.RULES) - frozenset(llamafactory.RULES),
    "llamafactory": frozenset(llamafactory.RULES) - frozenset(axolotl.RULES),
}


def tool_of(config: Mapping[str, Any]) -> Tool:
    """Tell by its keys which tool a configuration is for.

    Raises:
        InvalidInput: It is for neither, or it is a job of ours already.
    """
    if isinstance(config.get("dataset"), dict) or isinstance(config.get("training"), dict):
        raise InvalidInput("this is a job file already; give it to `lorad submit`", param="FILE")
    scores = {tool: len(signs & set(config)) for tool, signs in _SIGNS.items()}
    best: Tool = "axolotl" if scores["axolotl"] > scores["llamafactory"] else "llamafactory"
    if scores[best] == 0 or len(set(scores.values())) == 1:
        raise InvalidInput(
            "its keys are neither those of axolotl nor those of LLaMA-Factory; say which it is"
            " with --tool",
            param="FILE",
        )
    return best


def convert(
    config: Mapping[str, Any], tool: Tool, *, datasets: Mapping[str, Any] | None = None
) -> Conversion:
    """Make a job of another tool's configuration.

    Args:
        config: The configuration.
        tool: Whose it is.
        datasets: Content of LLaMA-Factory's `dataset_info.json`, where it was found.

    Raises:
        InvalidInput: It trains in a way that no job can.
    """
    if tool == "axolotl":
        return axolotl.convert(config)
    return llamafactory.convert(config, datasets)
