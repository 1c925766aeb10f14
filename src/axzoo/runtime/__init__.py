"""Runs a bundle as the board's host program does: embedding, chunked prefill, decode with KV caches, sampling."""
