"""Finished bundles: complete, verify, pack, unpack and describe them."""
