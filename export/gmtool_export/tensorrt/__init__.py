"""TensorRT plans and their optimisation profiles."""
