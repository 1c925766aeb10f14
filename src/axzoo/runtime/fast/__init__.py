"""Fast mode: the same files, joined into one graph and multiplied with ONNX Runtime's integer kernels."""
