"""ONNX building blocks: small functions that add standard opset-23 operators to a graph and return value names."""
