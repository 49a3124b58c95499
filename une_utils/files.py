"""Files that survive an interruption, and hashes that say what a result was made from."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

MISSING = "missing"  # stands for the hash of a file or model that is not there


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def json_digest(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return digest(json.dumps(content, sort_keys=True).encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: sorted keys, one value a line, newline at the end, so that a diff shows what changed."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file, or an empty mapping when there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def model_hash(folder: Path) -> str:
    """Hash of a model folder: every ``*.safetensors`` and ``*config.json`` below it; "missing" without weights."""
    files = sorted(p for pattern in ("*.safetensors", "*config.json") for p in folder.rglob(pattern))
    if not any(p.suffix == ".safetensors" for p in files):
        return MISSING
    parts = [(p.relative_to(folder).as_posix(), _file_hash(p, p.stat().st_size, p.stat().st_mtime_ns)) for p in files]
    return digest(json.dumps(parts).encode())


@lru_cache(maxsize=None)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file's content; size and time are in the cache's key, so a file that changed is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
