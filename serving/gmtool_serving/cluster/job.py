"""A prediction job on a Ray cluster, in shared folders and in buckets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact.lookup import find_model
from gmtool.errors import ArtifactError, UsageError
from gmtool.resources import temporary_dir
from gmtool_serving.backends.base import Backend, InferenceDevice
from gmtool_serving.backends.opening import open_backend
from gmtool_serving.cluster.pipeline import RayPipeline
from gmtool_serving.cluster.ray import Cluster, Wanted, check_address, connect
from gmtool_serving.cluster.storage import check_uri, is_uri, read_file
from gmtool_serving.cluster.stored_folder import StoredFolder
from gmtool_serving.cluster.stored_images import collect_stored_images
from gmtool_serving.cluster.workers import Job
from gmtool_serving.inputs.collect import InputImage, collect_images
from gmtool_serving.outputs.folder import OutputFolder
from gmtool_serving.outputs.formats import FormatName, check_formats, check_names
from gmtool_serving.outputs.manifest import Conditions
from gmtool_serving.outputs.whole_run_files import RESULT_NAMES
from gmtool_serving.pipeline.compute import require_confidence
from gmtool_serving.pipeline.job import Observer, PredictionSummary, Scoring, carry_out
from gmtool_serving.pipeline.run import PredictionRun, PredictOptions


@dataclass(frozen=True)
class RayOptions:
    """Cluster and its workers."""

    address: str
    """`auto`, HOST:PORT, or `local` for a cluster that is started here."""
    wanted: Wanted

    def __post_init__(self) -> None:
        check_address(self.address)


def refuse_with_ray(given: Mapping[str, bool]) -> None:
    """Refuse options of one machine; `given` says for each whether it was given.

    Raises:
        UsageError: One of them was.
    """
    remedies = {
        "--shard": "Ray divides the work itself",
        "--workers": "--ray-actors says how many predict, and reading follows",
        "--trust": "it is of TensorRT plans, and .onnx files are sent to workers",
        "--stride": "it is of videos, which are decoded from their beginning on one machine",
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} means nothing with --ray: {remedies[name]}")


def check_places(formats: Sequence[FormatName], out: str, *, scored: bool) -> None:
    """Refuse what cannot be done where masks go to a bucket.

    Raises:
        UsageError: Files of the whole run, or scores, which need the masks here.
    """
    if not is_uri(out):
        return
    check_uri(out)
    for name in formats:
        if name in RESULT_NAMES:
            raise UsageError(
                f"--format {name} ends in one file of all masks ({RESULT_NAMES[name]}), which is made on this "
                "machine: take an --out that is a folder"
            )
    if scored:
        raise UsageError("--ground-truth scores masks in a folder: copy them from the bucket for gmtool evaluate")


def collect_for_ray(inputs: Sequence[str], out: str, *, root: str | None) -> Sequence[InputImage]:
    """Return the images that paths or URIs name.

    Raises:
        UsageError: Both kinds at once, or a video.
        DataError: See `collect_images` and `collect_stored_images`.
    """
    if any(map(is_uri, inputs)) or (root is not None and is_uri(root)):
        if root is not None and is_uri(root):
            check_uri(root)
        return collect_stored_images(inputs, out, root=root)
    images = collect_images(inputs, Path(out), root=None if root is None else Path(root))
    for image in images:
        if image.frame is not None:
            raise UsageError(
                f"input {image.path}: a video is decoded from its beginning on one machine: predict without --ray"
            )
    return images


def predict_on_ray(
    inputs: Sequence[str],
    out: str,
    options: PredictOptions,
    ray: RayOptions,
    *,
    model: str | None,
    root: str | None = None,
    device: InferenceDevice = "auto",
    threads: int = 0,
    scoring: Scoring | None = None,
    observer: Observer | None = None,
) -> PredictionSummary:
    """Predict on a cluster; see `carry_out`.

    The output folder, the model and the cluster are opened before any image is read.

    Args:
        inputs: Paths or URIs.
        out: Output folder or URI.
        options: Formats, decoding, batches.
        ray: Cluster and workers.
        model: Path or URI of an ONNX model; None for the newest.
        root: Folder or URI of relative paths in lists.
        device: Device of the workers.
        threads: Processor threads of each worker; 0 for as many as it has processors.
        scoring: Ground truth; None for no score.
        observer: Follows the job.
    """
    observer = observer or Observer()
    check_places(options.formats, out, scored=scoring is not None)
    images = collect_for_ray(inputs, out, root=root)
    check_names(options.formats, images)
    model = os.fspath(find_model(None)) if model is None else model
    content = _read_model(model)
    cluster: Cluster | None = None

    def make_stages(folder: OutputFolder, backend: Backend, conditions: Conditions) -> RayPipeline:
        assert cluster is not None
        return _make_stages(
            folder,
            backend,
            conditions,
            cluster=cluster,
            out=out,
            options=options,
            content=content,
            device=device,
            threads=threads,
        )

    stored = StoredFolder(out, resume=options.resume) if is_uri(out) else None
    local_out = stored.out if stored is not None else Path(out)
    with PredictionRun(images, local_out, options, folder=stored, make_stages=make_stages) as run:
        backend = _open_here(model, content)
        check_formats(options.formats, backend.spec.classes, backend.spec.outputs)
        require_confidence(backend.spec, options.compute)
        run.sweep()
        with connect(ray.address, ray.wanted, device=device) as cluster:
            observer.tell(_room_line(cluster))
            summary = carry_out(run, backend, images, scoring=scoring, observer=observer)
        run.sweep()  # of workers that died
        return summary


def _make_stages(
    folder: OutputFolder,
    backend: Backend,
    conditions: Conditions,
    *,
    cluster: Cluster,
    out: str,
    options: PredictOptions,
    content: bytes,
    device: InferenceDevice,
    threads: int,
) -> RayPipeline:
    place = out if is_uri(out) else os.path.abspath(out)  # noqa: PTH100  workers have folders of their own
    job = Job(
        options=options,
        classes=backend.spec.classes,
        out=place,
        proof=None if is_uri(out) else str(Path(place) / folder.proof.name),
        model=backend.model,
        # Without GPUs of its own an actor looks for none
        device="cpu" if cluster.gpus == 0 else device,
        threads=threads or max(1, int(cluster.cpus)),
    )
    return RayPipeline(cluster, job, content, backend, find_past=lambda image: folder.find_past(image, conditions))


def _read_model(model: str) -> bytes:
    """Return the bytes of a model's file, which are sent to the workers."""
    if Path(model).suffix.lower() != ".onnx":
        raise UsageError(
            f"--model {model}: --ray sends .onnx files to its workers; a plan belongs to the GPU it was built for"
        )
    try:
        if is_uri(model):
            check_uri(model)
            return read_file(model)
        return Path(model).read_bytes()
    except OSError as error:
        raise ArtifactError(f"model {model}: cannot be read: {error.strerror or error}") from error


def _open_here(model: str, content: bytes) -> Backend:
    """Load the model on this machine's processor: a damaged one is found before the cluster has it."""
    if not is_uri(model):
        return open_backend(Path(model), device="cpu", threads=1)
    with temporary_dir() as folder:
        copy = folder / "model.onnx"
        copy.write_bytes(content)
        try:
            backend = open_backend(copy, device="cpu", threads=1)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(copy), model)) from error
    backend.model = model
    return backend


def _room_line(cluster: Cluster) -> str:
    gpus = f" and {cluster.gpus:g} GPU" if cluster.gpus else ""
    room = "" if cluster.first_actors == cluster.actors else f", room for {cluster.first_actors} now"
    return f"Ray {cluster.version}: {cluster.actors} actors of {cluster.cpus:g} CPU{gpus}{room}"
