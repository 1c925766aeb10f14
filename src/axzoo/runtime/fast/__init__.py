"""Fast mode: fuses the files of a model into one graph and runs it with ONNX Runtime's integer kernels."""
