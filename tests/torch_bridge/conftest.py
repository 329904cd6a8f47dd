"""What several tests of the models need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import NOT_FETCHED
from tests.llama_vocabulary import NotFetchedError, Vocabulary, fetched


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one core: test processes share the others, and a sum's order depends on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama_vocabulary(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The real Llama vocabulary, kept in pytest's cache; where npm cannot fetch it, the test is skipped and counted."""
    kept = getattr(pytestconfig, "cache", None)
    try:
        return Vocabulary.of(fetched(Path(kept.mkdir("npm")) if kept else tmp_path_factory.mktemp("npm")))
    except NotFetchedError as error:
        pytest.skip(f"{NOT_FETCHED}: {error}")
