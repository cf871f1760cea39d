"""What Triton has to be told about a model: its `config.pbtxt`, written and read by the published schema.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto, which tritonclient brings.
The batch dimension is never among the `dims`: Triton adds it where `max_batch_size` is above 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gmtool.artifact.spec import ArtifactSpec, OutputName
from gmtool.classes import ClassSet
from gmtool.errors import ArtifactError, DataError, needs_extra
from gmtool.json_toml import parse_json

ModelConfig = Any
"""A protobuf message; protobuf makes its classes at run time."""
Kind = Literal["onnx", "plan"]

LABELS_NAME = "labels.txt"
CLASSES_KEY = "gmtool.classes"
"""Parameter with the classes as JSON: a client can ask for the configuration, but not for `labels.txt`."""
DEFAULT_MAX_BATCH = 8
DEFAULT_QUEUE_DELAY_US = 2000
DEFAULT_WARMUP = ((512, 512),)


@dataclass(frozen=True)
class TritonOptions:
    """What is up to the server's owner. None leaves what a `config.pbtxt` says, or takes the default."""

    max_batch: int | None = None
    """Images that may be computed at once; default: 8, or as many as the plans take."""
    instances: int | None = None
    """Copies of the model on each GPU (or on the processor); default: 1."""
    queue_delay_us: int | None = None
    """Longest wait for other images to share a batch with, in microseconds; default: 2000."""
    warmup: tuple[tuple[int, int], ...] | None = None
    """(height, width) of the images that are computed before the model counts as ready; default: 512x512, or what
    the plans were tuned for. Empty: none."""


def new_config(
    name: str, spec: ArtifactSpec, kind: Kind, *, max_batch: int, warmup: tuple[tuple[int, int], ...]
) -> ModelConfig:
    """Return the configuration of a model with the defaults of `TritonOptions`."""
    config = _schema().ModelConfig(name=name, max_batch_size=max_batch)
    if kind == "plan":
        config.platform = "tensorrt_plan"
        config.instance_group.add(count=1, kind="KIND_GPU")
    else:
        config.backend = "onnxruntime"
        config.instance_group.add(count=1, kind="KIND_AUTO")  # a GPU where there is one, else the processor
    config.input.add(name=spec.input.name, data_type="TYPE_UINT8", dims=[-1, -1, 3])
    for output in spec.outputs:
        config.output.add(**_output(output, len(spec.classes)))
    config.version_policy.latest.num_versions = 1
    config.parameters[CLASSES_KEY].string_value = json.dumps(spec.classes.to_dict())
    _set_batching(config, DEFAULT_QUEUE_DELAY_US)
    _set_warmup(config, warmup)
    return config


def apply_options(config: ModelConfig, options: TritonOptions) -> None:
    """Change what the options name, in place; the rest stays, whoever wrote it."""
    if options.max_batch is not None:
        delay = config.dynamic_batching.max_queue_delay_microseconds or DEFAULT_QUEUE_DELAY_US
        sizes = warmup_sizes(config)
        config.max_batch_size = options.max_batch
        _set_batching(config, delay)
        _set_warmup(config, sizes)  # it is warmed up at the largest batch too
    if options.queue_delay_us is not None:
        _set_batching(config, options.queue_delay_us)
    if options.instances is not None:
        for group in config.instance_group:
            group.count = options.instances
    if options.warmup is not None:
        _set_warmup(config, options.warmup)


def contract_of(config: ModelConfig) -> str:
    """Return what all versions of a model share, for comparison: runtime, tensors and classes."""
    tensors = [
        f"{tensor.name} {_schema().DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        for tensor in (*config.input, *config.output)
    ]
    # The two ways to name a runtime mean the same
    runtime = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}.get(config.platform, config.backend)
    return f"{runtime}: {', '.join(tensors)}; classes {', '.join(_class_names(config))}"


def warmup_sizes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of the images that a model is warmed up with."""
    sizes = [tuple(value.dims[:2]) for entry in config.model_warmup for value in entry.inputs.values()]
    return tuple(dict.fromkeys((int(height), int(width)) for height, width in sizes))


def to_text(config: ModelConfig) -> str:
    """Return a configuration as `config.pbtxt` has it."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(path: Path) -> ModelConfig:
    """Read a `config.pbtxt`.

    Raises:
        ArtifactError: It cannot be read, or is not one.
    """
    config = _schema().ModelConfig()
    from google.protobuf import text_format

    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: not a model configuration of Triton: {reason}") from error
    return config


def labels_text(classes: ClassSet) -> str:
    """Return the names of the classes, one a line, as Triton wants them."""
    return "".join(f"{' '.join(name.split())}\n" for name in classes.names)


def _output(name: OutputName, num_classes: int) -> dict[str, Any]:
    if name == "logits":
        return {"name": name, "data_type": "TYPE_FP32", "dims": [num_classes, -1, -1]}
    labels = {"label_filename": LABELS_NAME} if name == "mask" else {}
    return {"name": name, "data_type": "TYPE_UINT8", "dims": [-1, -1], **labels}


def _set_batching(config: ModelConfig, delay_us: int) -> None:
    """Let images of one size that arrive within `delay_us` share a batch."""
    if config.max_batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    else:
        config.ClearField("dynamic_batching")


def _set_warmup(config: ModelConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    """Compute black images of these sizes first: one alone, and as many as fit into a batch."""
    config.ClearField("model_warmup")
    for height, width in sizes:
        for count in dict.fromkeys((1, config.max_batch_size)):
            entry = config.model_warmup.add(name=f"{count}x{height}x{width}", batch_size=count)
            image = entry.inputs[config.input[0].name]
            image.data_type = config.input[0].data_type
            image.dims.extend((height, width, 3))
            image.zero_data = True


def _class_names(config: ModelConfig) -> list[str]:
    try:
        value = parse_json(config.parameters[CLASSES_KEY].string_value, where=CLASSES_KEY)
        return [str(name) for name in value["names"]]
    except (DataError, LookupError, TypeError):
        return ["not told"]


def _schema() -> Any:
    with needs_extra("triton", "a model repository for Triton"):
        from tritonclient.grpc import model_config_pb2
    return model_config_pb2
