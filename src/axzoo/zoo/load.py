"""Reading a matrix file."""

from __future__ import annotations

from pathlib import Path

from axzoo.errors import AxzooError
from axzoo.zoo.chips import load_chips
from axzoo.zoo.document import read_document
from axzoo.zoo.models import Zoo
from axzoo.zoo.problems import report, validate

CHIPS_FILE = Path("config/chips.yaml")


def load_zoo(path: Path, chips: Path = CHIPS_FILE) -> Zoo:
    """Reads and validates a matrix; every build it lists can be expanded.

    Raises one AxzooError with a line `file:line: what is wrong` for each problem of the file.
    """
    document = read_document(path)
    zoo = validate(Zoo, document, context=load_chips(chips))
    problems = []
    for name in zoo.models:
        try:
            zoo.builds_of(name)
        except AxzooError as error:
            problems.append((("models", name), f"models.{name}: {error}"))
    if problems:
        raise report(document, problems)
    return zoo
