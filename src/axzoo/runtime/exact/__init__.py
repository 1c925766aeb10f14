"""Exact mode: fp32 arithmetic with weights that stay in the mapped file and are dequantized product by product."""
