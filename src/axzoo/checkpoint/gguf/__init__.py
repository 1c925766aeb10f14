"""GGUF files of llama.cpp: the header, the tensors, the tokenizer, and conversion to a checkpoint."""
