"""Export a network with random weights: `uv run python benchmarks/random_model.py resnet18 model.onnx`.

Speed does not depend on weights. A separate program, since an import of torch stays in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gmtool_export.graph.onnx import export_graph, finish, keep_outputs

from gmtool.artifact.spec import ArtifactSpec, ModelProvenance
from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.nn.model import GuidedMixNet


def main() -> None:
    """Write the model."""
    encoder, path = sys.argv[1], Path(sys.argv[2])
    config, classes = ModelConfig(encoder=encoder, encoder_weights="none"), load_classes("voc")
    network = GuidedMixNet(config, num_classes=len(classes), num_foreground=len(classes.foreground)).eval()
    spec = ArtifactSpec(
        classes=classes,
        precision="fp32",
        encoder=encoder,
        output_stride=network.output_stride,
        attention_stride=config.output_stride,
        outputs=("mask",),
        provenance=ModelProvenance("random", 0, None, "0" * 64, "0", "0", "0"),
    )
    path.write_bytes(finish(keep_outputs(export_graph(network), spec.outputs), spec))


if __name__ == "__main__":
    main()
