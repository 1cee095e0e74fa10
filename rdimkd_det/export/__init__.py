"""A trained student by itself: one checkpoint or ONNX file, and where it comes from."""
