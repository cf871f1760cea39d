"""Conversion of an ONNX model to OpenVINO IR."""

from __future__ import annotations

import hashlib

from gmtool.artifact.openvino_ir import Ir, IrSpec, weights_path
from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import ArtifactError, needs_extra
from gmtool.resources import temporary_dir


def convert_ir(content: bytes, spec: ArtifactSpec) -> Ir:
    """Convert a sealed ONNX model; its precision stays as it is in the graph.

    Args:
        content: Content of the ONNX file.
        spec: Its spec.

    Raises:
        ArtifactError: OpenVINO refuses the graph.
        MissingExtraError: OpenVINO is not installed.
    """
    with needs_extra("openvino", "exporting to OpenVINO"):
        import openvino
    with temporary_dir() as folder:
        source, xml = folder / "model.onnx", folder / "model.xml"
        source.write_bytes(content)
        try:
            model = openvino.convert_model(source)
            openvino.save_model(model, xml, compress_to_fp16=False)
        except Exception as error:  # OpenVINO raises classes of its native part
            reason = " ".join(str(error).split())[-300:]
            raise ArtifactError(f"OpenVINO {openvino.__version__} refuses the graph: {reason}") from error
        files = xml.read_bytes(), weights_path(xml).read_bytes()
    xml_sha256, bin_sha256, onnx_sha256 = (hashlib.sha256(file).hexdigest() for file in (*files, content))
    return Ir(*files, IrSpec(spec, xml_sha256, bin_sha256, onnx_sha256, version=openvino.__version__))
