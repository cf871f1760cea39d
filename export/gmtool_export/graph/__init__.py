"""The deployment graph and its ONNX file."""
