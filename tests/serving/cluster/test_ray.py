"""Predicting on Ray: two workers on this machine, and the API of S3 on loopback."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cli
from gmtool_serving.cluster import pipeline as ray_pipeline
from gmtool_serving.cluster import ray as ray_cluster
from gmtool_serving.cluster import stored_folder
from gmtool_serving.cluster.ray import Cluster, Wanted, connect
from gmtool_serving.cluster.storage import delete_file, list_files, read_file, write_file
from gmtool_serving.cluster.stored_folder import StoredFolder
from gmtool_serving.cluster.stored_images import collect_stored_images
from gmtool_serving.outputs.manifest import Record
from PIL import Image

from gmtool.cli import signals
from gmtool.errors import BackendError, DataError


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A bucket."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        # The server loads its parts at the first request, which takes longer than Arrow's 3 s on a busy machine
        store = S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, request_timeout=60)
        store.create_dir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def cluster(store: str) -> Iterator[Cluster]:
    """A Ray of this machine with room for two workers that predict; the command line joins it."""
    with connect("local", Wanted(actors=2), device="cpu") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def images(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 images of several sizes, two of them bad, one with a name that is not UTF-8."""
    root = tmp_path_factory.mktemp("many") / "images"
    (root / "sub").mkdir(parents=True)
    for index, path in enumerate(sorted((toy_data / "JPEGImages").iterdir())[:20]):
        with Image.open(path) as image:
            for copy in range(3):
                size = (64 + 8 * (index % 2), 48 + 8 * copy)
                image.resize(size).save(root / ("sub" if copy else "") / f"{path.stem}-{copy}.png")
    (root / "bad.jpg").write_text("not an image")
    (root / "cut.png").write_bytes((root / "sub" / f"{path.stem}-1.png").read_bytes()[:-30])
    shutil.copy(root / "sub" / f"{path.stem}-1.png", os.fsdecode(os.fsencode(root) + b"/n\xff.png"))
    (root / f"{path.stem}-0.png").unlink()
    (root / f"{path.stem}-0.png").with_name("sub").joinpath(f"{path.stem}-2.png").unlink()
    return root


def records(content: bytes) -> tuple[dict[str, Record], dict[str, object]]:
    """Return the records of a manifest by output, and its summary; each output stands there once."""
    *lines, last = content.splitlines()
    found = [record for record in map(Record.from_line, lines) if record is not None]
    by_output = {record.output: record for record in found}
    assert len(by_output) == len(found) == len(lines)
    summary: dict[str, object] = json.loads(last)["summary"]
    return by_output, summary


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def predictors() -> list[int]:
    """Return the processes that hold the model."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"MapWorker(MapBatches(Predictor))" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_a_predictor(out: Path, killed: list[int]) -> None:
    """Kill a worker with the model as soon as the first masks are written; note how many there are.

    On a busy machine all may be predicted while this process learns of the first in the manifest, or looks
    through the processes: hence the masks, and hence workers are sought before there are any.
    """
    deadline, workers = time.monotonic() + 120, list[int]()
    while time.monotonic() < deadline:
        masks = sum(1 for _ in out.rglob("*.png"))
        if masks and workers:
            try:
                os.kill(workers.pop(), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(masks)
            return
        workers = workers or predictors()
        time.sleep(0.01)


def test_masks_and_manifest_are_those_of_one_machine_though_a_worker_is_killed(
    cluster: Cluster, images: Path, toy_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pipeline, "BLOCK", 4)
    common = ["--model", toy_model, "--device", "cpu", "--format", "voc,coco"]
    plain, on_ray = tmp_path / "plain", tmp_path / "ray"
    assert cli(["predict", images, "--out", plain, "--workers", 0, *common])[0] == 3
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_predictor, args=(on_ray, killed))
    killer.start()
    code, out, err = cli(["predict", images, "--out", on_ray, *common, "--ray", "auto", "--json"])
    killer.join()
    assert code == 3
    assert killed and 0 < killed[0] < 61  # midway
    assert err.splitlines()[0].startswith("Ray 2") and "failed: " in err
    assert {line.partition(":")[0].partition(" ")[0] for line in err.splitlines()} == {
        "Ray",
        "model",
        "failed",
        "speed",
    }

    expected, made = files_below(plain), files_below(on_ray)
    (wanted, _), (got, summary) = (records(files.pop("manifest.jsonl")) for files in (expected, made))
    assert made == expected
    assert got == wanted
    assert {**json.loads(out), "seconds": 0} == {**summary, "seconds": 0}
    assert (summary["inputs"], summary["ok"], summary["failed"]) == (61, 59, 2)
    assert str(summary["backend"]).endswith(f"CPUExecutionProvider on Ray {cluster.version}")


def test_a_bucket_is_read_and_written_and_resumed(
    cluster: Cluster, store: str, images: Path, toy_model: Path, tmp_path: Path, cli: Cli
) -> None:
    some = [*sorted((images / "sub").iterdir())[:6], images / "bad.jpg"]
    for path in some:
        write_file(f"{store}/images/{path.name}", path.read_bytes())
    write_file(f"{store}/model.onnx", toy_model.read_bytes())
    out = f"{store}/images/masks"  # inside the input: not to be taken for images
    command = [
        "predict",
        f"{store}/images",
        "--out",
        out,
        "--model",
        f"{store}/model.onnx",
        "--ray",
        "auto",
        "--ray-actors",
        1,
    ]
    code, said, _ = cli(command)
    assert code == 3
    assert said.startswith(f"6 masks in {out}, 1 failed")

    assert cli(["predict", *some, "--out", tmp_path / "plain", "--model", toy_model, "--workers", 0])[0] == 3
    expected = {
        name: content for name, content in files_below(tmp_path / "plain").items() if name.endswith(".png")
    }
    stored = {file.relative: read_file(file.uri) for file in list_files(out)}
    by_output, _ = records(stored.pop("manifest.jsonl"))
    assert stored == expected
    assert by_output["bad"].path == f"{store}/images/bad.jpg"
    assert f"{store}/images/bad.jpg: not an image" in str(by_output["bad"].error)

    write_file(f"{store}/images/{some[0].name}", some[1].read_bytes())  # an image changes
    delete_file(f"{out}/{some[2].stem}.png")  # a mask is lost
    code, said, _ = cli([*command, "--resume", "--json"])
    assert code == 3
    summary = json.loads(said)
    assert (summary["ok"], summary["skipped"], summary["failed"]) == (2, 4, 1)
    assert read_file(f"{out}/{some[0].stem}.png") == expected[f"{some[1].stem}.png"]
    assert read_file(f"{out}/{some[2].stem}.png") == expected[f"{some[2].stem}.png"]


def test_an_interrupted_run_closes_its_manifest(
    cluster: Cluster, images: Path, toy_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pipeline, "BLOCK", 1)
    manifest = tmp_path / "masks" / "manifest.jsonl"
    # The handler that the program's entry point installs, with a state of its own
    monkeypatch.setattr(signals, "_state", type(signals._state)())
    for module, hook in ((sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))

    def interrupt() -> None:
        while not (manifest.exists() and manifest.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signals._handle)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        code, out, err = cli(
            ["predict", images, "--out", manifest.parent, "--model", toy_model, "--ray", "auto", "--ray-actors", 1]
        )
    finally:
        signal.signal(signal.SIGINT, usual)
    assert code == 130, err
    assert "not reached" in out, err
    by_output, summary = records(manifest.read_bytes())
    assert 0 < len(by_output) < 61
    assert summary["not_reached"] == 61 - len(by_output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--ray", "images", "--out", "m"], "--ray images: expected auto, local or HOST:PORT"),
        (["images", "--ray", "ray://head:10001", "--out", "m"], "start the run on a machine of the cluster"),
        (["images", "--ray-actors", "2", "--out", "m"], "--ray-actors needs --ray"),
        (["images", "--ray", "local", "--shard", "1/2", "--out", "m"], "--shard means nothing with --ray"),
        (["images", "--ray", "local", "--workers", "2", "--out", "m"], "--workers means nothing with --ray"),
        (["images", "--ray", "local", "--out", "s3://b/m", "--format", "coco"], "take an --out that is a folder"),
        (["images", "--ray", "local", "--out", "http://b/m"], "expected a local path or s3://"),
        (["s3://b/images", "--out", "m"], "buckets are read with --ray"),
        (["s3://b/film.mp4", "--ray", "local", "--out", "m"], "a video is decoded from its beginning"),
        (["s3://b/i", "images", "--ray", "local", "--out", "m"], "input images: not a URI, unlike other inputs"),
        (["images", "--ray", "local", "--out", "m", "--model", "m.plan"], "--ray sends .onnx files"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    store: str,
    toy_data: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(toy_data / "JPEGImages")
    write_file("s3://bucket/b/i/x.png", b"")
    code, out, err = cli(["predict", *[word.replace("s3://b/", "s3://bucket/b/") for word in arguments]])
    assert code == 2
    assert message in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "m").exists()


def test_a_missing_extra_is_one_line(
    toy_data: Path, toy_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    images = toy_data / "JPEGImages"
    code, _, err = cli(["predict", images, "--out", tmp_path / "m", "--model", toy_model, "--ray", "local"])
    assert code == 1
    assert err == 'error: predicting on Ray needs ray, which is not installed: pip install "gmtool[ray]"\n'


def test_case_26_a_bucket_has_one_writer(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"{store}/shared/masks"
    first = StoredFolder(out, resume=False)
    with pytest.raises(DataError, match=f"another gmtool predict .process {os.getpid()} on .* writes into it"):
        StoredFolder(out, resume=False)
    monkeypatch.setattr(stored_folder, "LEASE_S", -1.0)  # the first one has died
    StoredFolder(out, resume=False).close()
    first.close()
    assert not list_files(out)


def test_images_of_a_bucket_have_names_of_their_own(
    store: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = f"{store}/named"
    hidden = (".hidden/x.png", "__MACOSX/x.jpg", "b/photo.heic")
    for key in ("a/x.jpg", "a/x.png", "b/y z%#?.JPG", *hidden, "notes.txt", "out/x.png"):
        write_file(f"{root}/{key}", b"?")

    def names(*inputs: str, **options: str) -> list[tuple[str, str]]:
        found = collect_stored_images(inputs, f"{root}/out", **options)
        return [(str(image), str(image.output)) for image in found]

    everything = names(root)
    assert everything == [
        (f"{root}/a/x.jpg", "a/x.jpg"), (f"{root}/a/x.png", "a/x.png"), (f"{root}/b/y z%#?.JPG", "b/y z%#?")
    ]  # fmt: skip
    said = capfd.readouterr().err
    assert "left out: 1 HEIC (b/photo.heic): convert them to JPEG or PNG, 2 hidden files or folders (" in said
    assert names(f"{root}/**/*.jpg") == [(f"{root}/a/x.jpg", "a/x")]
    assert names(f"{root}/a/x.png") == [(f"{root}/a/x.png", "x")]
    listed = tmp_path / "list.txt"
    listed.write_text(f"a/x.jpg\n{store}/elsewhere/z.png\n")
    assert names(f"@{listed}", root=root) == [
        (f"{root}/a/x.jpg", "a/x"), (f"{store}/elsewhere/z.png", "bucket/elsewhere/z")
    ]  # fmt: skip
    with pytest.raises(DataError, match="no images in s3://bucket/nowhere"):
        names(f"{store}/nowhere")
    with pytest.raises(DataError, match="s3://bukcet/x: cannot be listed: .*NO_SUCH_BUCKET"):
        names("s3://bukcet/x")


def test_a_ray_that_is_started_here_listens_on_loopback(cluster: Cluster) -> None:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    assert [node["NodeManagerAddress"] for node in nodes] == ["127.0.0.1"]


SETTINGS_OF_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"}])
def test_a_ray_that_is_started_here_wants_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    import ray

    seen: dict[str, str | None] = {}

    def start(*_: object) -> None:
        seen.update({name: os.environ.get(name) for name in SETTINGS_OF_RAY})
        raise ConnectionError("not started in this test")

    for name in SETTINGS_OF_RAY:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_cluster, "_is_imported", lambda: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_cluster, "_start", start)
    monkeypatch.setattr(ray_cluster, "_short_folder", lambda: str(tmp_path))
    with pytest.raises(BackendError, match="not started in this test"):
        connect("local", Wanted(), device="cpu")
    assert seen["RAY_AUTH_MODE"] == given.get("RAY_AUTH_MODE", "token")
    token = seen["RAY_AUTH_TOKEN"] or ""
    assert token == given["RAY_AUTH_TOKEN"] if given else len(token) == 64
    assert seen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_killed_run_is_removed_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    def fail(*_: object) -> None:
        raise ConnectionError("not started in this test")

    claim = (
        "import os, pathlib, sys; from gmtool_serving.cluster import ray as ray_cluster; "
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir(); ray_cluster._claim(folder); "
        "(folder / 'session').mkdir(); os.kill(os.getpid(), 9)"
    )
    killed = tmp_path / "gmtool-ray-killed"
    subprocess.run([sys.executable, "-c", claim, str(killed)], check=False)
    alive, foreign, elsewhere = tmp_path / "gmtool-ray-alive", tmp_path / "gmtool-ray-other", tmp_path / "keep"
    for folder in (alive, foreign, elsewhere):
        folder.mkdir()
    (tmp_path / "gmtool-ray-link").symlink_to(elsewhere)
    (elsewhere / ray_cluster.CLAIM_NAME).touch()
    descriptor = ray_cluster._claim(alive)
    assert (killed / "session").is_dir() and descriptor is not None
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_cluster, "_start", fail)
    monkeypatch.setattr(ray_cluster, "_short_folder", lambda: str(tmp_path))
    with pytest.raises(BackendError):
        connect("local", Wanted(), device="cpu")
    os.close(descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gmtool-ray-alive", "gmtool-ray-link", "gmtool-ray-other", "keep"
    ]  # fmt: skip
