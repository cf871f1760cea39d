"""Bad clients of the service: large, slow and gone ones, a flood, damaged images, dying decoders."""

import http.client
import io
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackend
from gmtool_serving.http import connection
from gmtool_serving.http.models import WARM_UP_SIZE
from http_service import Client, Reply, form, gradient, png, serving, wait_for
from PIL import Image

from gmtool.errors import BackendError, BackendMemoryError
from gmtool.images import UInt8Array

IMAGE = png(gradient())


class Held:
    """Fake model that waits in each batch, but not in its warm-up, until it is told to go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.backend = FakeBackend(check=self._wait)

    def _wait(self, images: UInt8Array) -> None:
        assert images.shape[1] == WARM_UP_SIZE[0] or self.go.wait(20)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go.set()


def send_many(client: Client, count: int) -> tuple[ThreadPoolExecutor, list[Callable[[], Reply]]]:
    """Send requests at the same time; each result is a function that waits for the answer."""
    pool = ThreadPoolExecutor(count)
    return pool, [pool.submit(client.post, "/v1/predict", IMAGE).result for _ in range(count)]


def talk(port: int, lines: bytes) -> socket.socket:
    """Return a connection on which some bytes were sent."""
    talking = socket.create_connection(("127.0.0.1", port), timeout=20)
    talking.sendall(lines)
    return talking


def everything(talking: socket.socket) -> bytes:
    """Return what is received until the other side closes the connection."""
    received = b""
    while chunk := talking.recv(1 << 16):
        received += chunk
    return received


def test_case_40_a_body_of_20_mb_is_refused_before_it_is_read() -> None:
    with serving({"m": FakeBackend()}) as running:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
        with talk(running.client.port, head) as talking:
            assert talking.recv(1000).startswith(b"HTTP/1.1 413 ")  # not a byte of the body was sent
        chunked = [b"x" * 1_000_000] * 20
        connection_ = http.client.HTTPConnection("127.0.0.1", running.client.port, timeout=20)
        try:
            connection_.request("POST", "/v1/predict", iter(chunked), encode_chunked=True,
                                headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        except (BrokenPipeError, ConnectionResetError):
            pass  # the service has closed the connection already
        else:
            assert connection_.getresponse().status == 413
        connection_.close()
        assert running.service.bodies.held == 0
        assert running.client.post("/v1/predict", IMAGE).status == 200


def test_case_40_a_flood_gets_503_and_what_was_accepted_is_answered(held: Held) -> None:
    with serving({"m": held.backend}, queue=4) as running:
        pool, answers = send_many(running.client, 4)
        wait_for(lambda: running.service.slots.taken == 4)
        for _ in range(20):
            refused = running.client.post("/v1/predict", IMAGE)
            assert (refused.status, refused.code) == (503, "busy")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert running.client.get("/healthz").status == 200
        batch = running.client.post_form("/v1/predict-batch", {f"{number}.png": IMAGE for number in range(5)})
        assert (batch.status, batch.code) == (503, "busy")
        held.go.set()
        assert [answer().status for answer in answers] == [200] * 4
        pool.shutdown()
        wait_for(lambda: running.service.slots.taken == 0)
        assert running.client.post("/v1/predict", IMAGE).status == 200


def test_a_batch_larger_than_the_queue_is_refused_for_good() -> None:
    with serving({"m": FakeBackend()}, queue=2) as running:
        reply = running.client.post_form("/v1/predict-batch", {f"{number}.png": IMAGE for number in range(3)})
        assert reply.status == 400 and "Maximum number of files is 2" in reply.json["error"]["message"]


def test_case_40_a_slow_body_gets_408() -> None:
    with serving({"m": FakeBackend()}, body_timeout_s=0.2) as running:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
        with talk(running.client.port, head) as talking:
            got = everything(talking)
            assert got.startswith(b"HTTP/1.1 408 ") and b"3 bytes" in got
        assert running.service.bodies.held == 0


def test_case_40_a_slow_head_gets_408_and_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    with serving({"m": FakeBackend()}) as running:
        with talk(running.client.port, b"POST /v1/predict HTTP/1.1\r\nHost: loc") as talking:
            for _ in range(4):  # more bytes do not buy more time
                time.sleep(0.05)
                talking.sendall(b"a")
            assert everything(talking).startswith(b"HTTP/1.1 408 ")
        with talk(running.client.port, b"") as idle:
            assert everything(idle).startswith(b"HTTP/1.1 408 ")


def test_a_refused_body_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.2)
    with serving({"m": FakeBackend()}, token="t" * 16) as running:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        with talk(running.client.port, head) as talking:
            assert everything(talking).startswith(b"HTTP/1.1 401 ")


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKE_TIMEOUT_S", 0.3)
    noise = png(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8))
    backend = FakeBackend(outputs=("mask", "confidence"))
    with serving({"m": backend}, send_buffer_bytes=4096) as running:
        head = f"POST /v1/predict?format=npz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(noise)}\r\n\r\n"
        with socket.socket() as talking:
            talking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            talking.connect(("127.0.0.1", running.client.port))
            talking.sendall(head.encode() + noise)
            wait_for(lambda: running.service.slots.taken == 1)
            wait_for(lambda: running.service.slots.taken == 0)
            time.sleep(0.6)
            assert 0 < len(everything(talking)) < 700 * 700  # cut off: the confidence alone has more bytes


def test_case_40_an_image_that_is_not_done_in_time_gets_503(held: Held) -> None:
    with serving({"m": held.backend}, deadline_s=0.2) as running:
        reply = running.client.post("/v1/predict", IMAGE)
        assert (reply.status, reply.code) == (503, "deadline") and "retry-after" in reply.headers
        late = running.client.post("/v1/predict", IMAGE)  # waits behind the first, and never reaches the model
        assert late.code == "deadline"
        held.go.set()
        wait_for(lambda: running.service.scheduler.waiting == 0)
    assert len(held.backend.batches) == 1


def test_case_40_the_work_of_a_client_that_is_gone_is_dropped(held: Held) -> None:
    with serving({"m": held.backend}) as running:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IMAGE)}\r\n\r\n".encode()
        first, *others = [talk(running.client.port, head + IMAGE) for _ in range(4)]
        wait_for(lambda: len(held.backend.batches) == 1 and running.service.slots.taken == 4)
        for other in others:
            other.close()
        wait_for(lambda: running.service.slots.taken == 1)
        held.go.set()
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        first.close()
        counted = 'gmtool_requests_total{method="POST",route="predict",status="499"} 3.0'
        wait_for(lambda: counted in running.client.get("/metrics").body.decode())
    assert len(held.backend.batches) == 1


def test_case_40_nothing_is_ready_before_every_model_has_run() -> None:
    first, second = FakeBackend(), FakeBackend()
    with serving({"a": first, "b": second}, warm=False) as running:
        assert running.client.get("/healthz").status == 200
        assert running.client.get("/readyz").status == 503
        reply = running.client.post("/v1/predict", IMAGE)
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not_ready", "1")
        running.service.warm_up()
        assert len(first.batches) == len(second.batches) == 1
        assert running.client.get("/readyz").status == 200
        assert running.client.post("/v1/predict", IMAGE).status == 200


def test_images_that_wait_share_a_batch_with_those_of_their_model_and_size() -> None:
    held, other = Held(), FakeBackend()
    with serving({"m": held.backend, "other": other}, batch=4, pad_px=32, workers=3) as running:
        pool = ThreadPoolExecutor(9)
        posts = [("m", (24, 36))] + [("m", (24, 40)), ("other", (24, 36)), ("m", (60, 60)), ("m", (10, 64))] * 2
        sizes = [size for _, size in posts]
        futures = [pool.submit(running.client.post, f"/v1/predict?model={posts[0][0]}", png(gradient(*sizes[0])))]
        wait_for(lambda: len(held.backend.batches) == 1)
        for name, size in posts[1:]:
            futures.append(pool.submit(running.client.post, f"/v1/predict?model={name}", png(gradient(*size))))
        wait_for(lambda: running.service.scheduler.waiting == 8)
        held.go.set()
        replies = [future.result() for future in futures]
        pool.shutdown()
        for reply, (height, width) in zip(replies, sizes, strict=True):
            mask = np.asarray(Image.open(io.BytesIO(reply.body)))
            np.testing.assert_array_equal(mask, (gradient(height, width)[..., 0] // 85).clip(0, 2))
    assert sorted(held.backend.batches) == [(1, 32, 64, 3), (2, 64, 64, 3), (4, 32, 64, 3)]
    assert other.batches == [(2, 32, 64, 3)]


def test_an_image_that_fails_in_a_batch_fails_alone(held: Held) -> None:
    def fails(images: UInt8Array) -> None:
        held._wait(images)
        if (images[:, 0, 0] == 7).all(axis=1).any():
            raise BackendMemoryError("no memory for sevens")
        if (images[:, 0, 0] == 9).all(axis=1).any():
            raise BackendError("nines break the runtime")

    backend = FakeBackend(check=fails)
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 7, 9, 0)]
    with serving({"m": backend}, batch=8, workers=2) as running:
        pool = ThreadPoolExecutor(5)
        first = pool.submit(running.client.post, "/v1/predict", png(images[0]))
        wait_for(lambda: len(backend.batches) == 1)
        futures = [pool.submit(running.client.post, "/v1/predict", png(image)) for image in images]
        wait_for(lambda: running.service.scheduler.waiting == 4)
        held.go.set()
        replies = [future.result() for future in futures]
        pool.shutdown()
        assert first.result().status == 200
    assert [reply.status for reply in replies] == [200, 422, 500, 200]
    assert replies[1].json["error"] == {"code": "out_of_memory", "message": "image: no memory for sevens"}
    assert replies[2].json["error"] == {"code": "backend_failed", "message": "image: nines break the runtime"}


DEADLY = """
import os, signal
import gmtool.images as images

decode_image = images.decode_image

def deadly(content, path, **options):
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_image(content, path, **options)

images.decode_image = deadly
"""


def test_case_40_a_decoder_that_an_image_kills_costs_that_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with serving({"m": FakeBackend()}, isolated=True) as running:
        reply = running.client.post_form("/v1/predict", {"crash.png": IMAGE})
        assert (reply.status, reply.code) == (422, "worker_died")
        assert "crash.png: its decoding process crashed (SIGSEGV)" in reply.json["error"]["message"]
        good = running.client.post_form("/v1/predict", {"good.png": IMAGE})
        assert good.status == 200


def mutants(count: int) -> Iterator[bytes]:
    """Yield damaged files of all formats: changed, cut, exchanged and repeated bytes."""
    random = np.random.default_rng(40)
    files = []
    for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        Image.fromarray(gradient(16, 24)).save(buffer, kind)
        files.append(buffer.getvalue())
    for number in range(count):
        data = bytearray(files[number % len(files)])
        for _ in range(int(random.integers(1, 9))):
            data[int(random.integers(len(data)))] = int(random.integers(256))
        if number % 5 == 0:
            del data[int(random.integers(len(data))) :]
        if number % 7 == 0:
            place = int(random.integers(len(data) + 1))
            data[place:place] = data[: int(random.integers(60))]
        yield bytes(data)


def test_case_40_a_thousand_damaged_images_are_masks_or_refusals_and_never_500() -> None:
    statuses: dict[int, int] = {}
    with serving({"m": FakeBackend()}, isolated=True) as running:
        connection_ = http.client.HTTPConnection("127.0.0.1", running.client.port, timeout=30)
        for content in mutants(1000):
            connection_.request("POST", "/v1/predict", content)
            reply = connection_.getresponse()
            reply.read()
            statuses[reply.status] = statuses.get(reply.status, 0) + 1
        connection_.close()
    assert set(statuses) <= {200, 400, 422}, statuses
    assert statuses[422] > 200 and statuses[200] > 100


HOSTILE = [
    b"",
    b"--xyz",
    b"--xyz\r\n\r\n\r\n--xyz--\r\n",
    b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n",
    b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="a\x00\xff\r\nb"\r\n\r\nx\r\n--xyz--\r\n',
    b"--xyz\r\n" + b"A" * 100_000,
    form({f"{number}.png": b"x" for number in range(200)})[0],
    form({})[0],
]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict-batch"])
def test_damaged_forms_are_refused(path: str) -> None:
    with serving({"m": FakeBackend()}) as running:
        for body in HOSTILE:
            reply = running.client.post(path, body, Content_Type="multipart/form-data; boundary=xyz")
            assert 400 <= reply.status < 500, body[:60]
        assert running.client.post(path, b"x", Content_Type="multipart/form-data").status == 400
        for charset in ("undefined", "idna", "punycode", "utf-7", "rot13", "no-such", "utf-16"):
            kind = f"multipart/form-data; boundary=xyz; charset={charset}"
            assert running.client.post(path, HOSTILE[4], Content_Type=kind).status in (400, 422), charset
        for target in (
            f"{path}?tile={'9' * 5000}",
            f"{path}?overlap={'9' * 5000}",
            f"{path}?min_confidence=1e999",
        ):
            assert running.client.post(target, IMAGE).status == 400, target[:40]
        assert running.client.get(f"/v1/samples/{'9' * 5000}").status == 404


@pytest.mark.parametrize("value", ["http://127.0.0.1:9/x.png", "file:///etc/hostname", "/etc/hostname"])
def test_case_40_a_path_or_url_in_a_request_is_never_opened_and_no_file_is_written(value: str) -> None:
    opened: list[tuple[str, int]] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int):
            opened.append((str(arguments[0]), arguments[2]))

    sys.addaudithook(note)
    text = f'--xyz\r\nContent-Disposition: form-data; name="image"\r\n\r\n{value}\r\n--xyz--\r\n'.encode()
    large = png(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8))
    with serving({"m": FakeBackend()}) as running:
        opened.clear()
        reply = running.client.post("/v1/predict", text, Content_Type="multipart/form-data; boundary=xyz")
        assert reply.status == 422 and "paths and URLs are never opened" in reply.json["error"]["message"]
        assert running.client.post("/v1/predict", value.encode()).code == "not_an_image"
        assert running.client.post_form("/v1/predict-batch", {value: IMAGE, "large.png": large}).status == 200
        assert not [path for path, flags in opened if "hostname" in path or flags & (os.O_WRONLY | os.O_RDWR)]


def test_few_images_are_decoded_ahead_of_the_model(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bodies, not pixels: two a batch, two to be encoded, one a decoder."""
    with serving({"m": held.backend}, workers=1) as running:
        pool, answers = send_many(running.client, 12)
        wait_for(lambda: running.service.slots.taken == 12 and running.service._room.inside == 5)
        time.sleep(0.1)
        text = running.client.get("/metrics").body.decode()
        assert "gmtool_decode_seconds_count 5.0" in text
        held.go.set()
        assert [answer().status for answer in answers] == [200] * 12
        pool.shutdown()
    monkeypatch.setattr("gmtool_serving.http.service.MAX_DECODED_BYTES", 1)
    held.go.clear()
    with serving({"m": held.backend}, workers=1) as running:
        pool, answers = send_many(running.client, 3)
        wait_for(lambda: running.service.scheduler.waiting == 0 and running.service._room.size_bytes > 1)
        time.sleep(0.1)
        assert running.service._room.inside == 1  # its pixels are more than all may have
        held.go.set()
        assert [answer().status for answer in answers] == [200] * 3
        pool.shutdown()


def test_many_requests_on_many_connections_end_with_nothing_held() -> None:
    with serving({"m": FakeBackend()}, workers=2, queue=500) as running:
        with ThreadPoolExecutor(8) as pool:
            formats: Sequence[str] = ("png", "color", "json", "overlay") * 25
            replies = list(
                pool.map(lambda name: running.client.post(f"/v1/predict?format={name}", IMAGE), formats)
            )
        assert {reply.status for reply in replies} == {200}
        service = running.service
        wait_for(lambda: service.slots.taken == 0 and service.bodies.held == 0)
        assert service._room.inside == service._room.size_bytes == 0
        text = running.client.get("/metrics").body.decode()
        assert re.search(r'gmtool_images_total\{code="ok",model="m"\} 100\.0', text)
        assert "gmtool_decode_seconds_count 100.0" in text
