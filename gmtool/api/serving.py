"""Serve models over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gmtool.api.arguments import Device, PathLike, as_path
from gmtool.console import remark
from gmtool.errors import needs_extra


def serve(
    models: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: PathLike | None = None,
    cors: Sequence[str] = (),
    queue: int = 64,
    deadline_s: float = 30.0,
    max_body_mb: int = 16,
    body_timeout_s: float = 15.0,
    max_pixels: int | None = None,
    exif: Literal["apply", "ignore"] = "apply",
    bits: int = 16,
    pad: int = 0,
    samples: PathLike | None = None,
    device: Device = "auto",
    batch: int | None = None,
    threads: int = 0,
    workers: int | None = None,
    trust: bool = False,
    access_log: bool = False,
    tell: Callable[[str], None] = remark,
) -> None:
    """Answer images with masks over HTTP until SIGTERM or Ctrl-C.

    Args:
        models: Exported models or run folders, each as FILE or NAME=FILE; none for the newest model below `runs/`.
        host: Address to listen on.
        port: TCP port; 0 for any free one.
        token: File with the token that requests must bear; None for that of $GMTOOL_TOKEN, or none.
        cors: Origins whose pages may use the service.
        queue: Images that are accepted at a time.
        deadline_s: Seconds for an answer.
        max_body_mb: Largest body of a request, MiB.
        body_timeout_s: Seconds that a client has to send a body.
        max_pixels: Larger images are refused. [200 000 000]
        exif: Masks of images as displayed, or as stored.
        bits: Bits that 16-bit grey images use, 8 to 16.
        pad: Pad images to a multiple of so many pixels.
        samples: Folder of images that the page offers; None for validation images of the first model's run, where
            only this machine can connect or a token is needed.
        device: See `gmtool.load`.
        batch: Images of one size computed at once. [1; on a GPU 8, of a plan its best]
        threads: See `gmtool.load`.
        workers: Decoding processes; 0 decodes in threads. [one a core, at most 8, fewer in little memory]
        trust: See `gmtool.load`.
        access_log: Print a line of JSON for each request on stdout.
        tell: Takes lines about the service.

    Raises:
        ArtifactError: A model is missing, damaged or foreign.
        BackendError: Device unavailable, or a model fails in its first run.
        DataError: The folder of samples has no image.
        GmtoolError: The port is taken.
        MissingExtraError: The packages of the service are not installed.
        UsageError: A bad token, or models of one name.
    """
    with needs_extra("server", "serving"):
        from gmtool_serving.http.models import name_models, open_models
        from gmtool_serving.http.options import ServeOptions, read_token
        from gmtool_serving.http.server import bind, run_server
        from gmtool_serving.http.service import Service
        from gmtool_serving.http.site.samples import samples_of_folder, samples_of_run
        from gmtool_serving.inputs.decode import DecodeOptions
        from gmtool_serving.pipeline.decoder_pool import Decoders
    # What is asked for
    pixels = DecodeOptions.max_pixels if max_pixels is None else max_pixels
    options = ServeOptions(
        host=host,
        port=port,
        token=read_token(as_path(token)),
        origins=tuple(origin.rstrip("/") for origin in cors),
        max_body_bytes=max_body_mb << 20,
        body_timeout_s=body_timeout_s,
        deadline_s=deadline_s,
        queue=queue,
        batch=batch,
        pad_px=pad,
        decode=DecodeOptions(exif == "apply", pixels, bits),
        access_log=access_log,
        **({} if workers is None else {"workers": workers}),
    )
    files = name_models(models)
    shown = () if samples is None else samples_of_folder(Path(samples))
    if samples is None and (options.is_local or options.token is not None):
        shown = samples_of_run(next(iter(files.values())))
    # Begin: the socket first, so that a port that is taken costs no time
    with bind(options) as listening:
        decoders = Decoders(max(1, options.workers), options.decode, isolated=options.workers > 0)
        try:
            decoders.start(options.workers)
            opened = open_models(files, device=device, threads=threads, trust=trust)
            for name, served in opened.items():
                tell(f"model {name}: {served.backend.model}, {served.backend.description}")
            service = Service(opened, options, decoders, shown)
            try:
                is_open = not options.is_local and options.token is None
                tell(_address_line(host, listening.getsockname()[1], is_open=is_open))
                run_server(service, listening, tell=tell)
            finally:
                service.close()
        finally:
            decoders.close()


def _address_line(host: str, port: int, *, is_open: bool) -> str:
    line = f"listening on http://{f'[{host}]' if ':' in host else host}:{port}/"
    return f"{line}: anybody who reaches it can use it: --token FILE asks for a token" if is_open else line
