"""Exports a trained student to one checkpoint or ONNX file, with its provenance."""
