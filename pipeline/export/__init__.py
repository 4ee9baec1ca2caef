"""A trained model as files that other programs run: an ONNX graph and all that belongs to it."""
