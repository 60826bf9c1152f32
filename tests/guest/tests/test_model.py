from __future__ import annotations

import hashlib
import importlib.util
import struct
import sys
from typing import TYPE_CHECKING

from guest import paths

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def tiny_model() -> ModuleType:
    script = paths.IMAGES / "llama-cpp/tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_model"] = module
    spec.loader.exec_module(module)
    return module


def test_the_model_is_the_same_bytes_everywhere() -> None:
    data = tiny_model().encode()
    assert hashlib.sha256(data).hexdigest() == ("0abb85067c13279042014c6c907f012a451be683611200bef8c56f695e80d339")


def test_the_model_is_whole(tmp_path: Path) -> None:
    module = tiny_model()
    file = tmp_path / "models" / "tiny.gguf"
    module.write(file)
    data = file.read_bytes()
    magic, version, tensors, entries = struct.unpack("<4sIQQ", data[:24])
    assert (magic, version) == (b"GGUF", 3)
    assert tensors == len(list(module.tensors()))
    assert entries == len(module.metadata())
    assert 250_000 < len(data) < 400_000
    assert [item.name for item in file.parent.iterdir()] == ["tiny.gguf"]
