"""A bundle at work, as on the board: embedding, prefill by chunks, decode with KV caches, sampling."""
