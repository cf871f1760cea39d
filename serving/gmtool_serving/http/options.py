"""Options of the HTTP service."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from gmtool.errors import UsageError
from gmtool.resources import decoding_processes
from gmtool_serving.inputs.decode import DecodeOptions

TOKEN_VARIABLE = "GMTOOL_TOKEN"
MIN_TOKEN_CHARS = 16


@dataclass(frozen=True)
class ServeOptions:
    """Addresses, limits and computation of the service."""

    host: str = "127.0.0.1"
    port: int = 8000
    """TCP port; 0 for any free one."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests need; None for none."""
    origins: tuple[str, ...] = ()
    """Other origins whose pages may use the service (CORS)."""
    max_body_bytes: int = 16 << 20
    """Largest body of a request."""
    body_timeout_s: float = 15.0
    """Seconds that a client has to send a body."""
    deadline_s: float = 30.0
    """Seconds from the end of a body to its answer; later the work is dropped."""
    queue: int = 64
    """Images that are decoded, computed, encoded or wait for it; further requests get 503."""
    batch: int | None = None
    """Images of one size computed at once; None for the default of the model's device."""
    pad_px: int = 0
    """Pad images to a multiple of so many pixels, so that more have one size."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = field(default_factory=decoding_processes)
    """Decoding processes; 0 decodes in threads, which a crashing decoder would end with the service."""
    access_log: bool = False
    """Print a line of JSON on stdout for each request."""

    @property
    def is_local(self) -> bool:
        """Return whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(name: str) -> bool:
    """Return whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def read_token(path: Path | None) -> str | None:
    """Return the token in a file, else that of the environment variable `GMTOOL_TOKEN`, else None.

    Raises:
        UsageError: The file cannot be read, or the token is shorter than 16 characters or has others than
            printable ASCII.
    """
    if path is None:
        where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    else:
        where = f"--token {path}"
        try:
            token = path.read_bytes()[:4096].decode("latin-1").strip()
        except OSError as error:
            raise UsageError(f"{where}: cannot be read: {error.strerror}") from error
    if len(token) < MIN_TOKEN_CHARS or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"{where}: {len(token)} characters; expected at least {MIN_TOKEN_CHARS} of printable ASCII without "
            "spaces: openssl rand -hex 32 makes one"
        )
    return token
