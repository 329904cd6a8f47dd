"""A KV cache that writes new tokens into room kept behind the old ones.

transformers' `DynamicLayer` copies all keys and values at every token; answering ten questions of the small pair, that
was 70 % of the time. Here they are copied only when the room is used up. What the model is given are views of the used
part, so the numbers are the same.
"""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 128  # tokens; more than an answer, so that decoding copies nothing
ROOM_SHARE = 8  # or an eighth of what is held, where that is more


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [b, h, s, d]; cropping and repeating are those of `DynamicLayer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Hold nothing yet."""
        super().__init__(*args, **kwargs)
        self._held: tuple[_Buffer, _Buffer] = (_Buffer(), _Buffer())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.keys = self._held[0].append(self.keys, length, key_states)
        self.values = self._held[1].append(self.values, length, value_states)
        return self.keys, self.values


class _Buffer:
    """Memory of which the first tokens are in use; a crop shortens the view, the next append writes over the rest."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def append(self, used: Tensor | None, length: int, new: Tensor) -> Tensor:
        """Return `used` [b, h, length, d] and `new` [b, h, m, d] as one view, [b, h, length + m, d]."""
        stop = length + new.shape[-2]
        if used is None or not self._is_home_of(used, length) or self._size() < stop:
            self._memory = new.new_empty(*new.shape[:-2], stop + max(ROOM, stop // ROOM_SHARE), new.shape[-1])
            if length and used is not None:
                self._memory[..., :length, :] = used
        assert self._memory is not None
        self._memory[..., length:stop, :] = new
        return self._memory[..., :stop, :]

    def _size(self) -> int:
        return 0 if self._memory is None else self._memory.shape[-2]

    def _is_home_of(self, used: Tensor, length: int) -> bool:
        """Whether `used` is the beginning of this memory; after a repeat over the batch it is not."""
        if self._memory is None:
            return False
        return length == 0 or (used.data_ptr() == self._memory.data_ptr() and used.stride() == self._memory.stride())


def new_cache() -> Cache:
    """Return an empty cache that gets its layers as the model asks for them."""
    return Cache(layer_class_to_replicate=GrowingLayer)
