"""Files that gmtool makes: run folders, checkpoints, exported models and TensorRT plans."""
