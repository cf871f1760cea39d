"""Throughput, latency and memory of `gmtool serve` against the model alone.

    uv run python benchmarks/serve.py [load|memory]... [--encoder resnet18] [--clients 8] [--minutes 20]

Prints ratios of one run, interleaved, the median of the rounds; the model has random weights. The service is a
process of its own, the clients are threads that each send an image, wait for its mask, and send the next.
load: decode, compute and encode of an image are timed alone, before and after each round, in this process: decode
    and encode on one core, the bare ONNX Runtime session on all cores. The images/s that the cores have room for
    are then 1 / (compute + (decode + encode) / cores): the bare session minus decode and encode on the same cores.
    throughput: images/s of all clients together over that.
    p95: 95th percentile of the latency of the clients over the time of a batch of one image a client at that rate.
    one client: its mean latency over decode + compute + encode.
    processor: processor time of the service and its decoders for an image, over that of the three stages alone. On
    cores that are all busy its inverse is the throughput; other programs on the machine disturb it less.
memory: resident memory of the service and its decoding processes at the end of a run at full load over that after
    a minute.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.predict import compare, export, pictures, rate

BOUNDS = {"throughput": 0.90, "p95": 2.2, "one client": 1.15, "processor": 1 / 0.90, "memory": 1.1}


@dataclass(frozen=True)
class Alone:
    """Seconds of each stage for one image, measured alone."""

    decode: float
    compute: float
    encode: float
    processor: float
    """Seconds of processor time of all stages together."""

    @property
    def in_turn(self) -> float:
        """Seconds of all stages one after the other."""
        return self.decode + self.compute + self.encode

    def rate(self, cores: int) -> float:
        """Return the images/s that the cores have room for."""
        return 1 / (self.compute + (self.decode + self.encode) / cores)


@contextmanager
def service(model: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """Start a service; yield its process id and port once it is ready."""
    command = [sys.executable, "-m", "gmtool", "serve", str(model), "--port", "0", "--device", "cpu", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if match := re.match(r"listening on http://127\.0\.0\.1:(\d+)/", line):
                port = int(match[1])
            if line.startswith("ready"):
                break
        assert port, "the service has not started"
        try:
            yield process.pid, port
        finally:
            process.terminate()
            process.communicate()


def clients(port: int, bodies: Sequence[bytes], count: int, *, seconds: float) -> list[float]:
    """Let clients send images for some seconds; return the latencies of all, seconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.perf_counter() < end:
            started = time.perf_counter()
            connection.request("POST", "/v1/predict", bodies[number % len(bodies)])
            reply = connection.getresponse()
            content = reply.read()
            assert reply.status == 200, content
            latencies.append(time.perf_counter() - started)
            number += 1
        connection.close()

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result()  # a refusal ends the measurement
    return latencies


def load(model: Path, paths: list[Path], *, count: int, rounds: int, seconds: float) -> None:
    """Compare throughput and latencies with the stages alone."""
    from gmtool_serving.backends.onnx_runtime import OrtBackend

    backend, cores = OrtBackend(model, device="cpu"), os.cpu_count() or 1
    bodies = [path.read_bytes() for path in paths]
    found: dict[str, list[float]] = {"throughput": [], "p95": [], "one client": [], "processor": []}
    with service(model, "--deadline", "600") as (process, port):
        clients(port, bodies, count, seconds=2)
        for _ in range(rounds):
            alone = stages(backend, bodies)
            started, spent = time.perf_counter(), processor_seconds(process)
            full = clients(port, bodies, count, seconds=seconds)
            images_per_s = len(full) / (time.perf_counter() - started)
            spent = processor_seconds(process) - spent
            single = clients(port, bodies, 1, seconds=seconds / 2)
            again = stages(backend, bodies)  # before and after: the machine may be slower for a while
            mean = Alone(
                *(statistics.mean(pair) for pair in zip(vars(alone).values(), vars(again).values(), strict=True))
            )
            batch_s = count / mean.rate(cores)
            found["throughput"].append(images_per_s / mean.rate(cores))
            found["p95"].append(float(np.quantile(full, 0.95)) / batch_s)
            found["processor"].append(spent / len(full) / mean.processor)
            found["one client"].append(statistics.mean(single) / mean.in_turn)
            stage_ms = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in vars(mean).items())
            print(f"alone: {stage_ms}; {count} clients: {images_per_s:.2f} images/s", flush=True)
    compare(f"throughput, {count} clients", found["throughput"], BOUNDS["throughput"])
    compare(f"p95 over batch time, {count} clients", found["p95"], BOUNDS["p95"], at_most=True)
    compare("latency of one client", found["one client"], BOUNDS["one client"], at_most=True)
    compare("processor time of an image", found["processor"], BOUNDS["processor"], at_most=True)


def stages(backend: object, bodies: Sequence[bytes]) -> Alone:
    """Time decoding, inference and encoding of the images, each alone."""
    from gmtool_serving.backends.onnx_runtime import OrtBackend

    from gmtool.images import decode_image
    from gmtool.masks.files import encode_mask

    assert isinstance(backend, OrtBackend)
    images = [decode_image(body, Path("image")).pixels[None] for body in bodies]
    masks = [backend.predict(image).mask[0] for image in images]
    count, spent = len(bodies), time.process_time()
    decode = 1 / rate(count, lambda: [decode_image(body, Path("image")) for body in bodies])
    compute = 1 / rate(count, lambda: [backend.predict(image) for image in images])
    encode = 1 / rate(count, lambda: [encode_mask(mask, backend.spec.classes) for mask in masks])
    return Alone(decode, compute, encode, (time.process_time() - spent) / count)


def memory(model: Path, paths: list[Path], *, count: int, minutes: float) -> None:
    """Compare the resident memory at the end of a run with that after a minute."""
    bodies = [path.read_bytes() for path in paths]
    with service(model, "--deadline", "600") as (process, port):
        begun = len(clients(port, bodies, count, seconds=min(60.0, 30 * minutes)))
        early = resident_bytes(process)
        rest = len(clients(port, bodies, count, seconds=60 * minutes - min(60.0, 30 * minutes)))
        late = resident_bytes(process)
    print(f"resident: {early / 2**20:.1f} MiB after {begun} images, {late / 2**20:.1f} MiB after {begun + rest}")
    compare(f"memory after {minutes:g} minutes", [late / early], BOUNDS["memory"], at_most=True)


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process and its children."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(process))
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(process: int) -> float:
    """Return the processor time of a process and its children."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(process)]
    return sum(int(ticks) for one in fields for ticks in one[11:13]) / os.sysconf("SC_CLK_TCK")


def family(process: int) -> list[int]:
    """Return the ids of a process and its children."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    return [process, *(int(child) for path in children for child in path.read_text().split())]


def main() -> None:
    """Run the measurements of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["load", "memory"])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--model", type=Path, help="a model instead of one with random weights")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or export(arguments.encoder, Path(folder) / "model.onnx")
        paths = pictures(Path(folder) / "images", arguments.images, arguments.width, arguments.height)
        print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for part in arguments.parts:
            if part == "load":
                load(model, paths, count=arguments.clients, rounds=arguments.rounds, seconds=arguments.seconds)
            else:
                memory(model, paths, count=arguments.clients, minutes=arguments.minutes)


if __name__ == "__main__":
    main()
