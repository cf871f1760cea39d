"""Triton model configuration: write and read `config.pbtxt` by the published schema.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto, included in
tritonclient. The batch dimension is never in `dims`: Triton adds it if `max_batch_size` is above 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gmtool.artifact.spec import ArtifactSpec, OutputName, Precision
from gmtool.classes import ClassSet
from gmtool.errors import ArtifactError, DataError, needs_extra
from gmtool.json_toml import parse_json

ModelConfig = Any
"""Protobuf message, whose class protobuf creates at run time."""
Kind = Literal["onnx", "plan"]

LABELS_NAME = "labels.txt"
CLASSES_KEY = "gmtool.classes"
"""Parameter with the classes as JSON: clients can read the configuration, but not `labels.txt`."""
DEFAULT_MAX_BATCH = 8
DEFAULT_QUEUE_DELAY_US = 2000
DEFAULT_WARMUP = ((512, 512),)


@dataclass(frozen=True)
class TritonOptions:
    """Serving options. None keeps the value of an existing `config.pbtxt`, or takes the default."""

    max_batch: int | None = None
    """Largest batch; default: 8, or the largest of the plans."""
    instances: int | None = None
    """Instances of the model on each GPU (or on the CPU); default: 1."""
    queue_delay_us: int | None = None
    """Longest wait for further images of a batch, microseconds; default: 2000."""
    warmup: tuple[tuple[int, int], ...] | None = None
    """(height, width) of warm-up images; default: 512x512, or the best shapes of the plans. Empty: no warm-up."""


def new_config(
    name: str, spec: ArtifactSpec, kind: Kind, *, max_batch: int, warmup: tuple[tuple[int, int], ...]
) -> ModelConfig:
    """Return the configuration of a model with default options."""
    config = _schema().ModelConfig(name=name, max_batch_size=max_batch)
    if kind == "plan":
        config.platform = "tensorrt_plan"
        config.instance_group.add(count=1, kind="KIND_GPU")
    else:
        config.backend = "onnxruntime"
        config.instance_group.add(count=1, kind="KIND_AUTO")  # a GPU if there is one, else the CPU
        _set_cuda(config, spec.precision)
    config.input.add(name=spec.input.name, data_type="TYPE_UINT8", dims=[-1, -1, 3])
    for output in spec.outputs:
        config.output.add(**_output(output, len(spec.classes)))
    config.version_policy.latest.num_versions = 1
    config.parameters[CLASSES_KEY].string_value = json.dumps(spec.classes.to_dict())
    _set_batching(config, DEFAULT_QUEUE_DELAY_US)
    _set_warmup(config, warmup)
    return config


def _set_cuda(config: ModelConfig, precision: Precision) -> None:
    """Set what gmtool's own CUDA sessions for single images have: cuDNN's first heuristic, fp32 that is fp32.

    onnxruntime_backend takes the algorithm from `parameters` alone, by number (1: HEURISTIC), and other options
    from the accelerator, since Triton 24.07.
    """
    config.parameters["cudnn_conv_algo_search"].string_value = "1"
    if precision == "fp32":
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        cuda.parameters["use_tf32"] = "0"


def apply_options(config: ModelConfig, options: TritonOptions) -> None:
    """Apply the options that are not None, in place."""
    if options.max_batch is not None:
        delay = config.dynamic_batching.max_queue_delay_microseconds or DEFAULT_QUEUE_DELAY_US
        sizes = warmup_sizes(config)
        config.max_batch_size = options.max_batch
        _set_batching(config, delay)
        _set_warmup(config, sizes)  # warm-up includes the largest batch
    if options.queue_delay_us is not None:
        _set_batching(config, options.queue_delay_us)
    if options.instances is not None:
        for group in config.instance_group:
            group.count = options.instances
    if options.warmup is not None:
        _set_warmup(config, options.warmup)


def contract_of(config: ModelConfig) -> str:
    """Return runtime, tensors and classes, which all versions of a model share, as text for comparison."""
    tensors = [
        f"{tensor.name} {_schema().DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        for tensor in (*config.input, *config.output)
    ]
    # `platform` and `backend` are two names of the runtime
    runtime = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}.get(config.platform, config.backend)
    return f"{runtime}: {', '.join(tensors)}; classes {', '.join(_class_names(config))}"


def warmup_sizes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of the warm-up images."""
    sizes = [tuple(value.dims[:2]) for entry in config.model_warmup for value in entry.inputs.values()]
    return tuple(dict.fromkeys((int(height), int(width)) for height, width in sizes))


def to_text(config: ModelConfig) -> str:
    """Return a configuration in the text format of `config.pbtxt`."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(path: Path) -> ModelConfig:
    """Read a `config.pbtxt`.

    Raises:
        ArtifactError: The file cannot be read, or is not a model configuration.
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
    """Return the content of `labels.txt`: class names, one a line."""
    return "".join(f"{' '.join(name.split())}\n" for name in classes.names)


def _output(name: OutputName, num_classes: int) -> dict[str, Any]:
    if name == "logits":
        return {"name": name, "data_type": "TYPE_FP32", "dims": [num_classes, -1, -1]}
    if name == "embedding":
        return {"name": name, "data_type": "TYPE_FP32", "dims": [-1]}
    labels = {"label_filename": LABELS_NAME} if name == "mask" else {}
    return {"name": name, "data_type": "TYPE_UINT8", "dims": [-1, -1], **labels}


def _set_batching(config: ModelConfig, delay_us: int) -> None:
    """Enable dynamic batching of images of one size that arrive within `delay_us`."""
    if config.max_batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    else:
        config.ClearField("dynamic_batching")


def _set_warmup(config: ModelConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    """Warm up with black images of these sizes: a single one and a full batch each."""
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
        return ["unknown"]


def _schema() -> Any:
    with needs_extra("triton", "a model repository for Triton"):
        from tritonclient.grpc import model_config_pb2
    return model_config_pb2
