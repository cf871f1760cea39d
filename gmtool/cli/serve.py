"""`gmtool serve`: models over HTTP, with a page to try them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.api import serving
from gmtool.cli.options import Batch, Bits, Device, Exif, MaxPixels, Threads, Trust, Workers, groups

EPILOG = groups(
    {
        "address": "--host --port --token --cors",
        "limits": "--queue --deadline --max-body --body-timeout --max-pixels",
        "images": "--exif --bits --pad --samples",
        "machine": "--device --batch --threads --workers --trust",
        "log": "--access-log",
    }
)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Exported models or run folders, each as FILE or NAME=FILE; the first is the default. [the "
            "newest model below runs/]",
            metavar="MODEL",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 for any free one.")] = 8000,
    token: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the token that requests must bear. [$GMTOOL_TOKEN, or none]"),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of https://HOST use the service; may be repeated."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Images that are accepted at a time; others get 503.")] = 64,
    deadline: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time for an answer; after it the image gets 503.")
    ] = 30.0,
    max_body: Annotated[int, typer.Option(min=1, metavar="MB", help="Refuse larger bodies at once.")] = 16,
    body_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time that a client has to send a body.")
    ] = 15.0,
    max_pixels: MaxPixels = None,
    exif: Exif = "apply",
    bits: Bits = 16,
    pad: Annotated[
        int, typer.Option(min=0, metavar="PX", help="Pad images to a multiple, so that more have one size.")
    ] = 0,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images that the page offers. [validation images of the run]"),
    ] = None,
    device: Device = "auto",
    batch: Batch = None,
    threads: Threads = 0,
    workers: Workers = None,
    trust: Trust = False,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Print a line of JSON for each request on stdout.")
    ] = False,
) -> None:
    """Answer images with masks over HTTP, on this machine alone unless --host says otherwise.

    A page to try the models is at /, the API's description at /docs. SIGTERM or Ctrl-C stops the service once the
    images that it accepted are answered; the exit code is then 0.
    """
    serving.serve(
        models or [],
        host=host,
        port=port,
        token=token,
        cors=cors or (),
        queue=queue,
        deadline_s=deadline,
        max_body_mb=max_body,
        body_timeout_s=body_timeout,
        max_pixels=max_pixels,
        exif=exif,
        bits=bits,
        pad=pad,
        samples=samples,
        device=device,
        batch=batch,
        threads=threads,
        workers=workers,
        trust=trust,
        access_log=access_log,
    )
