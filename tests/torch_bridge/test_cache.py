"""The growing cache holds what transformers' own layer holds, whatever is appended, cropped and repeated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from torch_bridge.cache import ROOM, GrowingLayer, new_cache

MOVES = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([1, 2, 5, ROOM - 1, ROOM, 3 * ROOM])),
    st.tuples(st.just("crop"), st.integers(0, 2 * ROOM)),
    st.tuples(st.just("repeat"), st.sampled_from([1, 2])),
)


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randn(batch, 2, count, 4)


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(MOVES, max_size=8))
def test_it_equals_the_layer_that_copies(moves):
    own, reference = GrowingLayer(), DynamicLayer()
    first = tokens(1, 3)
    own.update(first, first + 1)
    reference.update(first, first + 1)
    for move, count in moves:
        if move == "append":
            new = tokens(len(reference.keys), count)
            read = own.update(new, new + 1)
            for seen, expected in zip(read, reference.update(new, new + 1), strict=True):
                assert torch.equal(seen, expected)
        elif move == "crop":
            count = min(count, reference.get_seq_length() - 1)
            own.crop(-count)
            reference.crop(-count)
        else:
            own.batch_repeat_interleave(count)
            reference.batch_repeat_interleave(count)
        assert own.get_seq_length() == reference.get_seq_length()
        assert torch.equal(own.keys, reference.keys)
        assert torch.equal(own.values, reference.values)


def test_nothing_is_copied_while_there_is_room():
    layer = GrowingLayer()
    layer.update(tokens(1, 40), tokens(1, 40))
    home = layer.keys.data_ptr()
    for _ in range(3):
        layer.update(tokens(1, 30), tokens(1, 30))
        assert layer.keys.data_ptr() == home
        layer.crop(-5)
    layer.update(tokens(1, ROOM), tokens(1, ROOM))
    assert layer.keys.data_ptr() != home


def test_rows_that_were_repeated_do_not_share_memory():
    layer = GrowingLayer()
    layer.update(tokens(1, 4), tokens(1, 4))
    layer.batch_repeat_interleave(2)
    layer.update(tokens(2, 1), tokens(2, 1))
    assert not torch.equal(layer.keys[0, :, -1], layer.keys[1, :, -1])
    assert torch.equal(layer.keys[0, :, :4], layer.keys[1, :, :4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_the_models_dtype(dtype):
    cache = new_cache()
    assert cache.get_seq_length() == 0
    keys, _ = cache.update(tokens(1, 2).to(dtype), tokens(1, 2).to(dtype), 0)
    assert keys.dtype == dtype
    assert cache.get_seq_length() == 2
