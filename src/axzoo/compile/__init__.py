"""Spec + tensors -> the bytes of a file. No policy about where they go."""
