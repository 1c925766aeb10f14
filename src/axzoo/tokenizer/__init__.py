"""Converts text to token ids and back: local tokenizers, chat templates, and a client for tokenizer servers."""
