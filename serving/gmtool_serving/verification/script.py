"""Self-contained program that verifies a model on a machine without gmtool."""

from __future__ import annotations

import base64
import inspect

from gmtool_serving.verification import target

LINE = 96
"""Characters of the images and masks in a line of the program."""


def verification_script(content: bytes) -> str:
    """Return a Python program with a verification set in it; it needs numpy, and onnxruntime or tensorrt.

    Args:
        content: Content of the set's file.
    """
    text = base64.b64encode(content).decode("ascii")
    lines = [f'    "{text[start : start + LINE]}"' for start in range(0, len(text), LINE)]
    source = inspect.getsource(target)
    before, empty, after = source.partition('DATA = ""\n')
    assert empty
    return f"{before}DATA = (\n" + "\n".join(lines) + f"\n)\n{after}"
