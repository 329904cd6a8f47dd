"""Half of the time of these tests is XLA optimising programs that run for milliseconds."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Compile without most optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
