"""From a trained network to one self-contained ONNX file that knows what it is."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import warnings

import onnx
import torch

from gmtool.artifact import SHA256_KEY, SPEC_KEY, UNSEALED, seal
from gmtool.nn.model import GuidedMixNet
from gmtool.spec import ArtifactSpec
from gmtool_export.deploy import DeployModel

TRACED_SHAPE = (2, 160, 224)
"""Batch, height and width of the example; all three are dynamic in the graph."""


def export_onnx(network: GuidedMixNet, spec: ArtifactSpec) -> bytes:
    """Return the deployment graph of a network as a sealed ONNX file with its spec.

    Input `image` uint8 [N, H, W, 3], output `mask` uint8 [N, H, W]; N, H and W are dynamic.

    Args:
        network: A trained network, on the CPU; it is not changed.
        spec: What the file says about itself; its opset is the one that is written.
    """
    network = copy.deepcopy(network).eval()
    network.materialize_attention()
    example = torch.zeros(*TRACED_SHAPE, 3, dtype=torch.uint8)
    # What the exporter and its optimiser print is for stderr: stdout is for results
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of the exporter about itself; parity is checked afterwards
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            DeployModel(network),
            (example,),
            input_names=[spec.input.name],
            output_names=list(spec.outputs),
            dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}},
            opset_version=spec.opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json(), SHA256_KEY: UNSEALED})
    onnx.checker.check_model(model)
    return seal(model.SerializeToString())
