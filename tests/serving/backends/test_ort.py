"""ONNX Runtime: the contract of a backend, and its own messages on stderr only."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
from backend_contract import BackendContract
from gmtool_serving.backends import onnx_runtime
from gmtool_serving.backends.onnx_runtime import OrtBackend, cuda_options
from gmtool_serving.verification.target import open_onnx
from onnxruntime.capi import onnxruntime_inference_collection as sessions

from gmtool.artifact.spec import Precision
from gmtool.errors import ArtifactError
from gmtool.images import UInt8Array
from gmtool.resources import EXACT_INT8


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


def test_int8_is_exact_on_processors_without_vnni(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They add products of 8 bits in 16 unless asked: masks of int8 models were others there than elsewhere."""
    create, asked = sessions.InferenceSession._create_inference_session, []

    def note(self: sessions.InferenceSession, *arguments: object) -> None:
        asked.append(self._sess_options.get_session_config_entry(EXACT_INT8[0]))
        create(self, *arguments)

    monkeypatch.setattr(sessions.InferenceSession, "_create_inference_session", note)
    OrtBackend(toy_model, device="cpu", threads=1)
    open_onnx(toy_model, "CPUExecutionProvider")
    assert asked == [EXACT_INT8[1]] * 2


def test_a_provider_that_fails_is_not_replaced_in_silence(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create, asked = sessions.InferenceSession._create_inference_session, []

    def fail_on_cuda(self: object, providers: list[tuple[str, dict[str, str]]], *arguments: object) -> None:
        asked.append(providers)
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("CUDA failure 35")
        create(self, providers, *arguments)

    monkeypatch.setattr(sessions.InferenceSession, "_create_inference_session", fail_on_cuda)
    monkeypatch.setattr(onnx_runtime, "_wants_cuda", lambda device: device != "cpu")
    backend = OrtBackend(toy_model, device="auto", threads=1)
    out, err = capfd.readouterr()
    assert "CPUExecutionProvider" in backend.description
    assert out == "" and "CUDA unavailable (CUDA failure 35): predicting with CPUExecutionProvider" in err
    (cuda, options), *_ = asked[0]
    assert cuda == "CUDAExecutionProvider"
    assert options == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}  # float32 is float32
    with pytest.raises(ArtifactError, match="onnxruntime refuses it: CUDA failure 35"):
        OrtBackend(toy_model, device="cuda", threads=1)


def test_a_driver_beside_a_runtime_without_cuda_is_said(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_runtime, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    OrtBackend(toy_model, device="auto", threads=1)
    assert "beside an NVIDIA driver: this onnxruntime was built without CUDA" in capfd.readouterr().err


def test_float16_may_use_tf32_where_it_computes_in_float32() -> None:
    assert cuda_options("fp16") == cuda_options("int8") == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1"}


def test_full_batches_in_half_precision_take_the_other_heuristic() -> None:
    taken = {
        (precision, batch): cuda_options(precision, batch=batch)["cudnn_conv_algo_search"]
        for precision in get_args(Precision)
        for batch in (1, 8)
    }
    assert {key for key, name in taken.items() if name == "EXHAUSTIVE"} == {("fp16", 8)}
