"""From text to token ids and back: the local tokenizer of a bundle or checkpoint."""
