# Paths of folders as inputs and outputs. Normally one small file represents a folder. With a default storage provider,
# jobs receive only the paths they declare, so the folder itself is declared.
import os

USES_STORAGE = workflow.storage_settings.default_storage_provider is not None


def declared_path(folder, file):
    return folder if USES_STORAGE else f"{folder}/{file}"


def output_path(path):
    """A declared path as output."""
    return directory(path) if USES_STORAGE else path


def input_path(path):
    """A declared path as input. With sequential access, the fs storage plugin links folders instead of copying them."""
    return access.sequential(path) if USES_STORAGE else path


def folder_of(path):
    return path if USES_STORAGE else os.path.dirname(path)


CHECKPOINT = declared_path("results/checkpoints/{model}", "source.json")
LOCK = declared_path("results/locks/{model}", "made_from.json")
# Every checkpoint has a config.json, but the files of tokenizers vary, and some checkpoints have none.
TOKENIZER = declared_path("results/{chip}/{model}-{tag}/tokenizer", "config.json")
CALIBRATION = declared_path("results/calibration/{model}", "index.json")
