"""Generated ids: the only names that become parts of a path."""

import re
import secrets
import time

ID_PATTERN = r"^[a-z]+-[0-9a-f]{24}$"
_ID = re.compile(ID_PATTERN)


def new(prefix: str) -> str:
    """Make an id such as `job-0199c2f4a1b3e07d5c2f9a81`; ids sort by creation in milliseconds."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def is_id(text: str, prefix: str) -> bool:
    return bool(_ID.fullmatch(text)) and text.startswith(f"{prefix}-")
