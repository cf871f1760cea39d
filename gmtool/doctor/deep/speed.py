"""Deep check: images a second of decoding, copying, computing and writing, alone and together."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from gmtool.data.toy import ToyConfig, draw_sample
from gmtool.doctor.deep.onnx_models import model_path
from gmtool.doctor.deep.result import Checked, Setting, require
from gmtool.images import UInt8Array
from gmtool.resources import processors

HEIGHT, WIDTH = 375, 500
"""Size of the images, that of PASCAL VOC."""
IMAGES, DIFFERENT = 64, 4
LONGEST_S = 6.0
"""Time of one measurement."""
TOGETHER_S, MOST_IMAGES = 4.0, 8000
"""All stages together: as many images as the model alone takes in so long, so that the start hardly counts."""
PAPER_ENCODER = "resnet50"


def check(setting: Setting) -> Checked:
    """Measure each stage alone and the whole of `gmtool predict`; say which stage limits."""
    from gmtool_serving.backends.opening import open_backend
    from gmtool_serving.inputs.collect import InputImage
    from gmtool_serving.inputs.decode import Decoded, DecodeOptions, decode
    from gmtool_serving.outputs.formats import MaskItem
    from gmtool_serving.outputs.write import MaskFolders, write_outputs
    from gmtool_serving.pipeline.pipeline import MAX_GROUP
    from gmtool_serving.pipeline.run import WRITERS, PredictionRun, PredictOptions

    # Images and the model: on a card the paper's network in half precision, else the toy network
    folder = setting.folder / "speed"
    paths = _write_images(folder)
    on_card = setting.place == "cuda"
    model = _paper_model(folder) if on_card else model_path(setting, "fp32")
    backend = open_backend(model, device=setting.place)
    first = decode(paths[0], None, DecodeOptions())
    assert isinstance(first, Decoded)
    batch = np.repeat(first.pixels[None], backend.preferred_batch, axis=0)
    mask = backend.predict(batch).mask[0]
    # Each stage alone
    rates = {"decode": processors() * _rate(lambda: decode(paths[0], None, DecodeOptions()), 1)}
    if on_card:
        rates["copy"] = _copy_rate(batch)
    rates["model"] = _rate(lambda: backend.predict(batch).mask, len(batch))
    store, classes = MaskFolders(folder / "alone"), backend.spec.classes

    def write(writer: int) -> None:
        names = [PurePosixPath(str(writer * MAX_GROUP + index)) for index in range(MAX_GROUP)]
        write_outputs([MaskItem(name, mask, None) for name in names], classes, ("voc",), store)

    with ThreadPoolExecutor(WRITERS) as pool:
        rates["write"] = _rate(lambda: list(pool.map(write, range(WRITERS))), WRITERS * MAX_GROUP)
    # All of them together
    count = min(MOST_IMAGES, max(IMAGES, round(TOGETHER_S * rates["model"])))
    inputs = [InputImage(paths[index % IMAGES], PurePosixPath(str(index))) for index in range(count)]
    with PredictionRun(inputs, folder / "masks", PredictOptions()) as run:
        done = sum(outcome.failure is None for outcome in run.outcomes(backend))
    require(done == count, f"{count - done} of {count} images have no mask")
    rates["together"] = done / run.tally.seconds
    limit = min((name for name in rates if name != "together"), key=rates.__getitem__)
    shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    network = PAPER_ENCODER + " in fp16" if on_card else "the toy network"
    text = f"images/s of {WIDTH}x{HEIGHT} pixels with {network}, {processors()} cores: {shown}; {limit} limits"
    left_out = None if on_card else "copy and the paper's network: no card"
    return Checked(text, left_out, {name: round(rate, 1) for name, rate in rates.items()} | {"limit": limit})


def _write_images(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    config = ToyConfig(height_px=HEIGHT, width_px=WIDTH)
    drawn = [draw_sample(np.random.default_rng(index), config)[0] for index in range(DIFFERENT)]
    paths = [folder / f"{index:03d}.jpg" for index in range(IMAGES)]
    for index, path in enumerate(paths):
        Image.fromarray(drawn[index % DIFFERENT]).save(path, quality=90)
    return paths


def _rate(run: Callable[[], object], images: int) -> float:
    """Return images a second of a function that handles `images` at each call: the best of several calls."""
    run()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 20 and (len(times) < 3 or time.perf_counter() - started < LONGEST_S):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return images / float(np.median(times))


def _copy_rate(batch: UInt8Array) -> float:
    """Return images a second that are copied to the card, and their masks back, through pinned memory."""
    import torch

    images = torch.from_numpy(batch).pin_memory()
    masks = torch.empty(batch.shape[:3], dtype=torch.uint8).pin_memory()
    on_card = torch.empty(masks.shape, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        images.to("cuda", non_blocking=True)
        masks.copy_(on_card, non_blocking=True)
        torch.cuda.synchronize()

    return _rate(copy, len(batch))


def _paper_model(folder: Path) -> Path:
    """Export the paper's network with random weights in half precision: speed does not depend on weights."""
    from gmtool_export.graph.onnx import OPSET, export_graph, finish, keep_outputs

    from gmtool import __version__
    from gmtool.artifact.spec import ArtifactSpec, ModelProvenance, OutputName
    from gmtool.classes import load_classes
    from gmtool.config import ModelConfig
    from gmtool.nn.checkpoint import build_network

    classes, outputs = load_classes("voc"), tuple[OutputName, ...](("mask",))
    network = build_network(ModelConfig(encoder=PAPER_ENCODER, encoder_weights="none"), classes).eval()
    attention = network.attention
    spec = ArtifactSpec(
        classes=classes,
        precision="fp16",
        encoder=PAPER_ENCODER,
        output_stride=network.output_stride,
        attention_stride=None if attention is None else attention.stride,
        outputs=outputs,
        opset=OPSET,
        provenance=ModelProvenance("random", 0, None, "0" * 64, __version__, "", ""),
    )
    path = folder / "model_fp16.onnx"
    path.write_bytes(finish(keep_outputs(export_graph(network, half=True), outputs), spec))
    return path
