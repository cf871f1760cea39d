"""int8 quantisation: calibration, sensitivity of layers, Q/DQ nodes."""
