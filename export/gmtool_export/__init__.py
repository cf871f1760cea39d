"""Export: the deployment graph, the ONNX file, and the proof that it still is the same model."""
