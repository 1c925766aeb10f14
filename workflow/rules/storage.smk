# What jobs declare where they share no folder. With a default storage provider a job is handed what it declares and
# nothing beside it: so where one small file stands for the folder it lies in, the folder is declared instead.
import os

STORED = workflow.storage_settings.default_storage_provider is not None


def standing_for(folder, file):
    return folder if STORED else f"{folder}/{file}"


def made(path):
    """An output that stands for a folder."""
    return directory(path) if STORED else path


def read(path):
    """An input that stands for a folder. Storage that is a folder itself then links to it, instead of copying it."""
    return access.sequential(path) if STORED else path


def folder_of(path):
    return path if STORED else os.path.dirname(path)


def beside_the_workflow(files):
    """Files that no rule makes. A storage has none of them: jobs find them in the workflow's folder, or by full path."""
    return [] if STORED else files


CHECKPOINT = standing_for("results/checkpoints/{model}", "source.json")
LOCK = standing_for("results/locks/{model}", "made_from.json")
TOKENIZER = standing_for("results/{chip}/{model}-{tag}/tokenizer", "tokenizer.json")
CALIBRATION = standing_for("results/calibration/{model}", "index.json")
