"""ONNX Runtime: the contract of a backend, and its own messages on stderr only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from backend_contract import BackendContract
from gmtool_serving.backends.onnx_runtime import OrtBackend
from onnxruntime.capi import onnxruntime_inference_collection as sessions

from gmtool.images import UInt8Array


class TestOnnxRuntime(BackendContract):
    @pytest.fixture(scope="class")
    def backend(self, toy_model: Path) -> OrtBackend:
        return OrtBackend(toy_model, device="cpu", threads=1)

    @pytest.fixture
    def refused(self) -> UInt8Array:
        return np.zeros((1, 32, 32, 4), np.uint8)


def test_what_is_said_of_missing_cuda_libraries_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", "11.8")
    onnxruntime.preload_dlls()
    out, err = capfd.readouterr()
    assert out == "" and "CUDA 11.8" in err


def test_what_is_said_of_a_fallback_goes_to_stderr(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create, calls = sessions.InferenceSession._create_inference_session, []

    def fail_once(self: object, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            self._fallback_providers = ["CPUExecutionProvider"]  # type: ignore[attr-defined]
            raise ValueError("no GPU")
        create(self, *arguments)

    monkeypatch.setattr(sessions.InferenceSession, "_create_inference_session", fail_once)
    OrtBackend(toy_model, device="cpu", threads=1)
    out, err = capfd.readouterr()
    assert len(calls) == 2
    assert out == "" and "EP Error no GPU" in err
