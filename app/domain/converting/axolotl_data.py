"""Data sets and chat templates of axolotl."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

from app.domain.converting import shared
from app.domain.converting.draft import Draft

_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst")
# Prompt strategies whose rows are of a format of ours.
_FORMATS = {
    "alpaca": "alpaca",
    "alpaca_chat.load_default": "alpaca",
    "completion": "text",
    "pretrain": "text",
    "sharegpt": "sharegpt",
}
_SAME_ROLES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
_SHAREGPT = "turns with from and value"
_NO_EFFECT = ("ds_type", "trust_remote_code", "preprocess_shards", "field_tools")
_LOST = {
    "name": "save that configuration of the data set as a file",
    "revision": "save that revision of the data set as a file",
    "shards": "a job trains on the whole file",
    "shards_idx": "a job trains on the whole file",
    "roles": "names of roles are those of chat and ShareGPT rows; rename others in the file",
    "message_field_training": "give turns that are not learned a weight of 0 in the file",
    "message_field_training_detail": "a turn is learned as a whole or not at all",
    "drop_system_message": "remove system turns from the file",
    "conversation": "the tokenizer's own template is used",
    "input_transform": "change the rows in the file",
}


def datasets(draft: Draft, key: str, value: Any) -> None:
    """Carry the first data set; a job has one file."""
    for index, entry in enumerate(map(shared.as_mapping, _listed(value))):
        place = f"{key}[{index}]"
        if index == 0:
            _dataset(draft, place, entry)
            continue
        draft.lose(place, "a job trains on one file; put them together into one", value=dict(entry))


def test_datasets(draft: Draft, key: str, value: Any) -> None:
    for index, entry in enumerate(_listed(value)):
        draft.lose(
            f"{key}[{index}]",
            "upload its file with `lorad datasets upload` and give the id as dataset.eval_id",
            value=entry,
        )


def _listed(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []


def named_template(draft: Draft, key: str, value: Any) -> None:
    """Settle a template that is given by name: the model's own is used."""
    if value == "tokenizer_default":
        draft.drop(key, "the tokenizer's own template is used here too", value=value)
    else:
        draft.lose(
            key,
            f"the tokenizer's own template is used, not {value}; see `lorad preview`, or give"
            " dataset.chat_template as Jinja text",
            value=value,
        )


def jinja_template(draft: Draft, key: str, value: Any) -> None:
    if "{" in str(value):
        draft.put(key, "dataset.chat_template", value)
        return
    draft.lose(key, "give the text of that file as dataset.chat_template", value=value)


def _dataset(draft: Draft, place: str, entry: Mapping[str, Any]) -> None:
    renamed: dict[str, str] = {}
    _file(draft, place, entry)
    for name, value in entry.items():
        key = f"{place}.{name}"
        if name in ("path", "data_files"):
            continue
        if value is None or name in _NO_EFFECT:
            note = "it is not set" if value is None else "lorad finds out by itself"
            draft.drop(key, note, value=value)
        elif name in _LOST:
            draft.lose(key, _LOST[name], value=value)
        elif name in _RULES:
            _RULES[name](draft, key, value, entry, renamed)
        else:
            draft.lose(key, "it is no key of a data set that is known here", value=value)


def _file(draft: Draft, place: str, entry: Mapping[str, Any]) -> None:
    path, files = entry.get("path"), entry.get("data_files")
    listed = cast(list[Any], files if isinstance(files, list) else [files] if files else [])
    if listed:
        draft.put(f"{place}.data_files", "dataset.path", str(listed[0]))
        draft.drop(f"{place}.path", "data_files names the file", value=path)
        for index, other in enumerate(listed[1:], start=1):
            draft.lose(f"{place}.data_files[{index}]", "a job trains on one file", value=other)
        return
    name = str(path)
    if PurePath(name).suffix in _FILES:
        draft.put(f"{place}.path", "dataset.path", name)
        return
    file = f"{PurePath(name).name or 'data'}.jsonl"
    draft.put(
        f"{place}.path",
        "dataset.path",
        file,
        note=f"nothing is downloaded: save {name} as {file} beside the job file",
        given=path,
    )


def _type(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if isinstance(value, Mapping):
        _custom(draft, key, cast(Mapping[str, Any], value), renamed)
    elif value == "chat_template":
        draft.drop(
            key, "rows of messages are rendered with the chat template here too", value=value
        )
    elif str(value).partition(":")[0] in _FORMATS:
        draft.put(
            key,
            "dataset.format",
            _FORMATS[str(value).partition(":")[0]],
            note="the format of its rows; they are rendered with the chat template",
            given=value,
        )
    else:
        draft.lose(
            key,
            "no such prompt here; write the rows as messages, or as prompt and completion",
            value=value,
        )


def _custom(draft: Draft, key: str, fields: Mapping[str, Any], renamed: dict[str, str]) -> None:
    ours = {
        "field_instruction": "instruction",
        "field_input": "input",
        "field_output": "output",
        "field_system": "system",
    }
    for name, value in fields.items():
        if name in ours:
            _rename(draft, f"{key}.{name}", ours[name], value, renamed)
        else:
            draft.lose(f"{key}.{name}", "rows are rendered with the chat template", value=value)


def _split(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if value == "train":
        draft.drop(key, "the whole file is trained on", value=value)
    else:
        draft.lose(key, "the whole file is trained on; save that split as a file", value=value)


def _field(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    _rename(draft, key, "text", value, renamed)


def _messages(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    column = "conversations" if _is_sharegpt(entry) else "messages"
    _rename(draft, key, column, value, renamed)


def _properties(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if value not in _SAME_ROLES:
        draft.lose(key, "turns have role and content, or from and value", value=value)
    elif _is_sharegpt(entry):
        draft.put(key, "dataset.format", "sharegpt", note=_SHAREGPT, given=value)
    else:
        draft.drop(key, "turns have role and content here too", value=value)


def _old_property(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if _is_sharegpt(entry) and value in ("from", "value"):
        draft.put(key, "dataset.format", "sharegpt", note=_SHAREGPT, given=value)
    elif value in ("role", "content"):
        draft.drop(key, "turns have role and content here too", value=value)
    else:
        draft.lose(key, "turns have role and content, or from and value", value=value)


def _trained_roles(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if value in (["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]):
        draft.drop(key, "only the model's turns are learned here too", value=value)
    else:
        draft.lose(key, "only the model's turns are learned; or all: train_on_inputs", value=value)


def _trained_ends(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if value == "turn":
        draft.drop(key, "the end of each learned turn is learned here too", value=value)
    else:
        draft.lose(key, "the end of each learned turn is learned, and no other", value=value)


def _template(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    if value == "jinja":
        draft.drop(key, "chat_template_jinja is the template", value=value)
    else:
        named_template(draft, key, value)


def _jinja(
    draft: Draft, key: str, value: Any, entry: Mapping[str, Any], renamed: dict[str, str]
) -> None:
    jinja_template(draft, key, value)


def _rename(draft: Draft, key: str, ours: str, theirs: Any, renamed: dict[str, str]) -> None:
    if theirs == ours:
        draft.drop(key, f"the column is called {ours} here too", value=theirs)
    else:
        renamed[ours] = str(theirs)
        draft.put(key, "dataset.field_mapping", renamed, note=f"{ours} <- {theirs}", given=theirs)


def _is_sharegpt(entry: Mapping[str, Any]) -> bool:
    properties = shared.as_mapping(entry.get("message_property_mappings"))
    named = (properties.get("role"), entry.get("message_field_role"))
    return "from" in named or str(entry.get("type", "")).startswith("sharegpt")


_RULES = {
    "type": _type,
    "split": _split,
    "field": _field,
    "field_messages": _messages,
    "message_property_mappings": _properties,
    "message_field_role": _old_property,
    "message_field_content": _old_property,
    "roles_to_train": _trained_roles,
    "train_on_eos": _trained_ends,
    "chat_template": _template,
    "chat_template_jinja": _jinja,
}
# Every key of a data set that is known here, but those that name its file.
FIELDS = (*_RULES, *_LOST, *_NO_EFFECT)
