"""Write a tiny, random-weight llama model: real in everything but sense.

`python3 tiny_model.py PATH` writes about 300 KB of GGUF (version 3) that a real llama.cpp loads in
milliseconds. The bytes are the same on every machine: tests may compare them. Standard library only.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import argparse
import os
import random
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 260
WIDTH = 64
HEADS = 4
FEED_FORWARD = 128
CONTEXT = 16384
ALIGNMENT = 32

_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
_TENSOR_FLOAT32 = 0
# llama.cpp's token types.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


@dataclass(frozen=True)
class Tensor:
    """A float32 tensor; `shape` is in GGUF's order, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    values: array[float]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, kind: int, payload: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + payload


def _integer(key: str, value: int) -> bytes:
    return _entry(key, _UINT32, struct.pack("<I", value))


def _text(key: str, value: str) -> bytes:
    return _entry(key, _STRING, _string(value))


def _list(key: str, kind: int, items: Sequence[bytes]) -> bytes:
    return _entry(key, _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def metadata() -> list[bytes]:
    """Return the model's key-value section, one encoded entry an item."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "x"]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, _NORMAL]
    return [
        _text("general.architecture", "llama"),
        _text("general.name", "tiny-random"),
        _integer("general.file_type", 0),
        _integer("general.alignment", ALIGNMENT),
        _integer("llama.context_length", CONTEXT),
        _integer("llama.embedding_length", WIDTH),
        _integer("llama.block_count", 1),
        _integer("llama.feed_forward_length", FEED_FORWARD),
        _integer("llama.attention.head_count", HEADS),
        _integer("llama.attention.head_count_kv", HEADS),
        _entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        _integer("llama.rope.dimension_count", WIDTH // HEADS),
        _integer("llama.vocab_size", VOCABULARY),
        _text("tokenizer.ggml.model", "llama"),
        _list("tokenizer.ggml.tokens", _STRING, [_string(token) for token in tokens]),
        _list("tokenizer.ggml.scores", _FLOAT32, [struct.pack("<f", 0.0)] * VOCABULARY),
        _list("tokenizer.ggml.token_type", _INT32, [struct.pack("<i", kind) for kind in kinds]),
        _integer("tokenizer.ggml.bos_token_id", 1),
        _integer("tokenizer.ggml.eos_token_id", 2),
        _integer("tokenizer.ggml.unknown_token_id", 0),
    ]


def tensors(seed: int = 0) -> Iterable[Tensor]:
    """Yield the model's tensors, random but for the norms; the same for the same seed."""
    source = random.Random(seed)

    def noise(name: str, columns: int, rows: int) -> Tensor:
        values = array("f", (source.uniform(-0.09, 0.09) for _ in range(columns * rows)))
        return Tensor(f"{name}.weight", (columns, rows), values)

    def ones(name: str) -> Tensor:
        return Tensor(f"{name}.weight", (WIDTH,), array("f", [1.0] * WIDTH))

    yield noise("token_embd", WIDTH, VOCABULARY)
    yield ones("output_norm")
    yield noise("output", WIDTH, VOCABULARY)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield noise(f"blk.0.{name}", WIDTH, WIDTH)
    yield noise("blk.0.ffn_gate", WIDTH, FEED_FORWARD)
    yield noise("blk.0.ffn_up", WIDTH, FEED_FORWARD)
    yield noise("blk.0.ffn_down", FEED_FORWARD, WIDTH)
    yield ones("blk.0.attn_norm")
    yield ones("blk.0.ffn_norm")


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)


def encode(seed: int = 0) -> bytes:
    """Return the whole file."""
    entries = metadata()
    directory = b""
    data = b""
    count = 0
    for tensor in tensors(seed):
        directory += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        directory += b"".join(struct.pack("<Q", size) for size in tensor.shape)
        directory += struct.pack("<IQ", _TENSOR_FLOAT32, len(data))
        raw = tensor.values.tobytes()
        data += raw + _padding(len(raw))
        count += 1
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(entries)) + b"".join(entries) + directory
    return head + _padding(len(head)) + data


def write(path: Path, seed: int = 0) -> None:
    """Write the model to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(encode(seed))
    os.chmod(part, 0o644)
    part.replace(path)


def main() -> None:
    """Write the model to the path given on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.path, arguments.seed)


if __name__ == "__main__":
    main()
