import pytest
from tiny_gguf import Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny(tied=True)


@pytest.fixture(scope="session")
def untied() -> Tiny:
    return make_tiny(tied=False)
