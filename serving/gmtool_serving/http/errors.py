"""Refusals of requests: status, code and message, and their JSON form."""

from __future__ import annotations

from starlette.responses import JSONResponse

from gmtool_serving.inputs.decode import Failure

SERVER_FAULTS = ("backend_failed", "unknown_label")
"""Codes of failed images that the model or its runtime is to blame for, not the image."""


class RefusalError(Exception):
    """Request that gets an error.

    Args:
        status: HTTP status.
        code: Kind of refusal, independent of the message; codes of images are those of `gmtool predict`.
        message: One line.
        retry_after_s: Seconds after which the client may try again.
        closes: Close the connection after the answer, since the rest of the body is not read.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: int | None = None, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s, self.closes = retry_after_s, closes

    def response(self) -> JSONResponse:
        """Return the answer: `{"error": {"code": ..., "message": ...}}`."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.closes:
            headers["Connection"] = "close"
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="gmtool"'
        return JSONResponse(error_value(self.code, self.message), self.status, headers)


class ClientGoneError(Exception):
    """The client closed the connection before its answer."""


def error_value(code: str, message: str) -> dict[str, dict[str, str]]:
    """Return the JSON value of an error."""
    return {"error": {"code": code, "message": message}}


def refused(failure: Failure) -> RefusalError:
    """Return the refusal of an image: 422 with the code and text of `gmtool predict`; 500 if the model failed."""
    return RefusalError(500 if failure.code in SERVER_FAULTS else 422, failure.code, failure.message)


def bad_request(message: str, *, code: str = "usage") -> RefusalError:
    """Return the refusal of a request that says something wrong."""
    return RefusalError(400, code, message)
