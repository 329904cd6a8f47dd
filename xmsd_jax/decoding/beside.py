"""The drafter's phase 1 in a thread of its own, beside the target's prefill: two lanes at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from xmsd_jax.decoding.ports import Draft


class Beside:
    """Drafts from the moment it is made. As a context it ends with its thread done."""

    def __init__(self, work: Callable[[], Draft]) -> None:
        """Begin."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="drafter")
        self._future = self._pool.submit(work)

    def draft(self) -> Draft:
        """The draft, when it is done; what went wrong is raised here."""
        return self._future.result()

    def ids(self) -> list[int]:
        """The ids of the draft, when it is done."""
        return self.draft().ids.tolist()

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown()
