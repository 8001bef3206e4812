"""Networks with their weights in forms that others run: StableHLO and ONNX."""
