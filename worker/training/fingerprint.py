"""The base model's hash, computed beside other work and remembered."""

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from app.domain import model_folder


def start(folder: Path, cache_folder: Path) -> Future[str]:
    """Begin to hash a model folder in a thread; hashing gigabytes need not delay the first step."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fingerprint")
    future = executor.submit(cached, folder, cache_folder)
    executor.shutdown(wait=False)
    return future


def cached(folder: Path, cache_folder: Path) -> str:
    """Return a model folder's fingerprint; it is hashed anew when a file's size or time changed."""
    entry = cache_folder / "fingerprints" / f"{_listing(folder)}.json"
    try:
        return str(json.loads(entry.read_text("utf-8"))["sha256"])
    except (OSError, ValueError, KeyError):
        pass  # No usable entry: it is made below.
    sha256 = model_folder.fingerprint(folder)
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"folder": str(folder), "sha256": sha256}), "utf-8")
    temporary.replace(entry)
    return sha256


def of_tokenizer(folder: Path) -> str:
    """Hash the files that decide how text becomes tokens."""
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _listing(folder: Path) -> str:
    facts = [str(folder.resolve())]
    for file in sorted(folder.iterdir()):
        stat = file.stat()
        facts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
