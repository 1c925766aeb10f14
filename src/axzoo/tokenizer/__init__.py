"""From text to token ids and back: a folder's tokenizer, a server of it, and a client of such servers."""
