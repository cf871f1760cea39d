"""Who may ask the service: token, origins, host names, headers of its answers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from fakes import FakeBackend
from gmtool_serving.http.gate import OPEN_PATHS
from gmtool_serving.http.options import ServeOptions, read_token
from http_service import Client, gradient, png, serving

from gmtool.errors import UsageError

TOKEN = "0123456789abcdef"
IMAGE = png(gradient())


def test_case_40_a_wrong_or_missing_token_gets_401() -> None:
    with serving({"m": FakeBackend()}, token=TOKEN) as running:
        client = running.client
        for header in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN},
                       {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"}):  # fmt: skip
            for path in ("/v1/predict", "/v1/predict-batch"):
                reply = client.post(path, IMAGE, **header)
                assert (reply.status, reply.code) == (401, "wrong_token")
                assert reply.headers["www-authenticate"].startswith("Bearer")
            for path in ("/v1/models", "/v1/samples", "/metrics", "/v1/none"):
                assert client.get(path, **header).status == 401
        assert all(client.get(path).status == 200 for path in OPEN_PATHS)
        assert client.post("/v1/predict", IMAGE, Authorization=f"Bearer {TOKEN}").status == 200
        assert client.get("/metrics", Authorization=f"bearer {TOKEN}").status == 200


def test_a_token_comes_from_a_file_or_the_environment_and_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    assert read_token(None) is None
    monkeypatch.setenv("GMTOOL_TOKEN", f"{TOKEN}2")
    assert read_token(None) == f"{TOKEN}2"
    assert read_token(file) == TOKEN
    file.write_text("short")
    with pytest.raises(UsageError, match="5 characters; expected at least 16"):
        read_token(file)
    with pytest.raises(UsageError, match="No such file"):
        read_token(tmp_path / "none")
    assert TOKEN not in repr(ServeOptions(token=TOKEN))


def ask(client: Client, method: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
    reply = client.ask(method, "/v1/predict", IMAGE if method == "POST" else None, headers)
    return reply.status, reply.headers


def test_pages_of_other_origins_may_not_use_the_service_unless_they_are_named() -> None:
    preflight = {"Access-Control-Request-Method": "POST"}
    with serving({"m": FakeBackend()}, origins=("https://labels.example",)) as running:
        client, own = running.client, f"http://127.0.0.1:{running.client.port}"
        for origin in ("https://evil.example", "null", f"http://127.0.0.1:{client.port}.evil.example"):
            assert ask(client, "POST", {"Origin": origin})[0] == 403
            status, headers = ask(client, "OPTIONS", {"Origin": origin, **preflight})
            assert status == 403 and "access-control-allow-origin" not in headers
        status, headers = ask(client, "POST", {"Origin": own})
        assert status == 200 and "access-control-allow-origin" not in headers
        for method, more in (("POST", {}), ("OPTIONS", preflight)):
            status, headers = ask(client, method, {"Origin": "https://labels.example", **more})
            assert (status, headers["access-control-allow-origin"]) == (200, "https://labels.example")
            assert headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403),
        ("127.evil.example", 403), ("localhost.evil.example", 403), ("[", 403), ("10.0.0.1", 403),
    ],
)  # fmt: skip
def test_a_foreign_name_that_leads_to_this_machine_is_refused(host: str, status: int) -> None:
    with serving({"m": FakeBackend()}) as running:
        assert running.client.get("/v1/models", Host=host).status == status
    with serving({"m": FakeBackend()}, token=TOKEN) as running:
        assert running.client.get("/v1/models", Host=host, Authorization=f"Bearer {TOKEN}").status == 200


def test_only_this_machine_can_connect_unless_told() -> None:
    assert ServeOptions().is_local
    assert all(ServeOptions(host=host).is_local for host in ("localhost", "127.0.0.2", "::1"))
    assert not any(ServeOptions(host=host).is_local for host in ("0.0.0.0", "::", "10.0.0.1", "127.example"))


def test_every_answer_has_headers_of_safety_and_errors_are_json() -> None:
    with serving({"m": FakeBackend()}) as running:
        replies = [running.client.get(path) for path in ("/", "/v1/models", "/none", "/v1/predict", "/metrics")]
        for reply in replies:
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in reply.headers
        assert [reply.status for reply in replies] == [200, 200, 404, 405, 200]
        assert (replies[2].code, replies[3].code) == ("not_found", "method_not_allowed")


def test_the_access_log_is_a_line_of_json_for_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    with serving({"m": FakeBackend()}, access_log=True) as running:
        running.client.post("/v1/predict?format=json", IMAGE)
        running.client.get("/a%0ab%1b")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/predict", 200), ("GET", "/a\nb\x1b", 404)
    ]  # fmt: skip
    assert lines[0]["query"] == "format=json" and lines[0]["bytes"] > 100 and lines[0]["client"] == "127.0.0.1"
