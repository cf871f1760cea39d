"""Find external tensor data in the bytes of an ONNX model, before an ONNX library parses it.

Protobuf's wire format: https://protobuf.dev/programming-guides/encoding; ONNX's field numbers:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

TENSOR = "tensor"
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: TENSOR, 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: TENSOR, 6: "graph", 10: TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: TENSOR, 2: TENSOR},
}
"""Nested messages that may contain tensors, by message and field number."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
MAX_DEPTH = 100


def refers_to_other_files(model: bytes) -> bool:
    """Return whether a tensor of a serialised ONNX model has its data in another file.

    Raises:
        ValueError: Not a serialised protobuf message.
    """
    waiting: list[tuple[str, int, int, int]] = [("model", 0, len(model), 0)]
    while waiting:
        message, start, stop, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError("messages are nested too deeply")
        for number, value in _fields(model, start, stop):
            if message == TENSOR:
                if number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0):
                    return True
            elif number in CHILDREN[message] and isinstance(value, slice):
                waiting.append((CHILDREN[message][number], value.start, value.stop, depth + 1))
    return False


def _fields(content: bytes, start: int, stop: int) -> Iterator[tuple[int, int | slice]]:
    """Yield number and value of each field of a message; values of known length as slices of `content`."""
    position = start
    while position < stop:
        key, position = read_varint(content, position, stop)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = read_varint(content, position, stop)
            yield number, value
            continue
        if kind == 2:
            length, position = read_varint(content, position, stop)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > stop:
            raise ValueError("a field is longer than its message")
        yield number, slice(position, position + length)
        position += length


def read_varint(content: bytes, position: int, stop: int) -> tuple[int, int]:
    """Return a protobuf varint and the position after it.

    Raises:
        ValueError: The varint is cut off or has more than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            raise ValueError("a number is cut off")
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")
