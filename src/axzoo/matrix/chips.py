"""The supported chips, read from config/chips.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from axzoo.core.errors import AxzooError
from axzoo.matrix.document import read_document
from axzoo.matrix.validation import CHIP_NAME, report, validate

ChipName = Annotated[str, CHIP_NAME]


class Chip(BaseModel):
    """The properties of a chip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    other_names: tuple[ChipName, ...] = Field(description="Aliases that are accepted in place of the chip's name.")
    tops_int8: float = Field(gt=0, description="Peak int8 performance, 10^12 operations per second.")
    npu_memory_mb: int = Field(strict=True, gt=0, description="Memory available to a model on the chip's board, MB.")


class ChipTable(BaseModel):
    """The content of config/chips.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chips: dict[ChipName, Chip] = Field(min_length=1)

    def canonical_names(self) -> dict[str, str]:
        """The canonical name of each chip, by its name and its aliases."""
        names = {name: name for name in self.chips}
        return names | {other: name for name, chip in self.chips.items() for other in chip.other_names}

    def memory_mb(self, chip: str) -> int:
        """The chip's npu_memory_mb. Raises AxzooError when the table has no such chip."""
        if chip not in self.chips:
            raise AxzooError(f"chip {chip} is not in the chip table: it has {', '.join(self.chips)}")
        return self.chips[chip].npu_memory_mb


def load_chips(path: Path) -> ChipTable:
    """Reads and validates a chip table. Raises AxzooError with file, line and key of every problem, including duplicate
    names."""
    document = read_document(path)
    table = validate(ChipTable, document)
    taken = set(table.chips)
    for name, chip in table.chips.items():
        for other in chip.other_names:
            if other in taken:
                problem = f"the name {other} is used twice: remove one"
                raise report(document, [(("chips", name, "other_names"), problem)])
            taken.add(other)
    return table
