"""What crosses from torch to JAX is the same memory, or a copy that was asked for; nothing changes in silence."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from torch_bridge import exchange
from torch_bridge.exchange import ALIGNMENT, TorchWindow, copy, fetch, lend, share

DTYPES = {
    torch.float32: jnp.float32,
    torch.bfloat16: jnp.bfloat16,
    torch.int32: jnp.int32,
    torch.bool: jnp.bool_,
    torch.uint8: jnp.uint8,
}
EVERY = pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
ROWS, WIDTH = 6, 16


def some(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(3 * WIDTH).reshape(3, WIDTH) % 2).to(dtype)


def misaligned() -> torch.Tensor:
    whole = torch.arange(WIDTH + 1, dtype=torch.float32)
    assert whole.data_ptr() % ALIGNMENT == 0
    return whole[1:]


def values(array: jax.Array) -> list:
    return np.array(array.astype(jnp.float32)).tolist()


@EVERY
def test_lent_memory_is_the_tensors_own(dtype):
    tensor = some(dtype)
    lent = lend(tensor)
    assert (lent.dtype, lent.shape) == (DTYPES[dtype], tuple(tensor.shape))
    assert lent.unsafe_buffer_pointer() == tensor.data_ptr()
    assert values(lent) == tensor.float().tolist()
    tensor[1, 2] = not tensor[1, 2]
    assert values(lent) == tensor.float().tolist() != some(dtype).float().tolist()


@EVERY
def test_a_copy_has_memory_of_its_own(dtype):
    tensor = some(dtype)
    copied = copy(tensor)
    assert copied.dtype == DTYPES[dtype]
    assert copied.unsafe_buffer_pointer() != tensor.data_ptr()
    tensor.zero_()
    assert values(copied) == some(dtype).float().tolist()


def test_a_lent_array_outlives_the_tensor():
    lent = lend(some())
    torch.full((3, WIDTH), 7.0)  # would take the memory if it were free
    assert values(lent) == some().tolist()


def test_states_made_in_inference_mode_cross():
    with torch.inference_mode():
        tensor = some()
    assert values(lend(tensor)) == values(copy(tensor)) == tensor.tolist()


@pytest.mark.parametrize("bring", [lend, copy, share])
@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.arange(4), r"torch\.int64 does not cross unchanged; .* convert it first \(ids to torch\.int32\)"),
        (torch.zeros(4, dtype=torch.float64), r"torch\.float64 does not cross unchanged"),
        (torch.zeros(4, requires_grad=True), "requires grad: detach it first"),
        (some().T, r"received strides \(1, 16\) for shape \(16, 3\): call \.contiguous\(\) first"),
    ],
    ids=["int64", "float64", "grad", "strides"],
)
def test_what_would_be_changed_in_silence_is_refused(bring, tensor, told):
    with pytest.raises(ValueError, match=told):
        bring(tensor)


def test_misaligned_memory_is_not_lent_but_copied_and_shared():
    with pytest.raises(ValueError, match=r"aligned to 64 bytes.* off by 4: lend the whole buffer, or use copy"):
        lend(misaligned())
    assert values(copy(misaligned())) == misaligned().tolist()
    tensor = misaligned()
    shared = share(tensor)
    tensor.zero_()
    assert values(shared) == misaligned().tolist()


def test_aligned_memory_is_shared_as_it_is():
    tensor = some()
    assert share(tensor).unsafe_buffer_pointer() == tensor.data_ptr()


def window(dtype: torch.dtype = torch.float32) -> TorchWindow:
    return TorchWindow(ROWS, WIDTH, dtype=dtype, device=torch.device("cpu"))


def apart(*lengths: int) -> list[torch.Tensor]:
    """Row t of the joined blocks holds t + 1. Each block has memory of its own, as of a pass that keeps none."""
    rows = torch.arange(1.0, sum(lengths) + 1)[:, None].repeat(1, WIDTH)
    return [block.clone() for block in rows.split(lengths)]


def views(*lengths: int, rows: int = ROWS + 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The same as views of one buffer with room for a whole answer; the buffer's other rows are NaN."""
    buffer = torch.full((rows, WIDTH), torch.nan, dtype=dtype)
    buffer[: sum(lengths)] = torch.cat(apart(*lengths))
    return list(buffer[: sum(lengths)].split(lengths))


LENGTHS = pytest.mark.parametrize("lengths", [(6,), (2, 3), (1, 2, 1, 2)], ids=str)


@LENGTHS
@pytest.mark.parametrize("made", [apart, views])
@pytest.mark.parametrize("start", range(6))
def test_a_window_shows_each_row_from_start_on_at_its_place(made, lengths, start):
    blocks = made(*lengths)
    brought = window()(blocks, start, sum(lengths))
    assert brought.dtype == jnp.float32
    np.testing.assert_array_equal(brought[0, start : sum(lengths)], torch.cat(blocks)[start:])


@LENGTHS
def test_states_that_lie_in_one_memory_are_lent_where_they_lie(lengths):
    """All of it: its size is always the same, so one program reads it, and the last row of an answer is in it."""
    blocks = views(*lengths)
    brought = window()(blocks, 0, sum(lengths))
    assert brought.shape == (1, ROWS + 3, WIDTH)
    assert brought.unsafe_buffer_pointer() == blocks[0].data_ptr()


def test_memory_is_lent_once_for_a_growing_answer(monkeypatch):
    imported = []
    monkeypatch.setattr(exchange, "lend", lambda tensor: imported.append(tensor.data_ptr()) or lend(tensor))
    brings, buffer, other = window(), torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    own = imported.pop()
    for stop in range(1, ROWS + 1):
        buffer[stop - 1] = stop
        brought = brings([buffer[:1], buffer[1:stop]], stop - 1, stop)
        assert values(brought[0, :stop, 0]) == [*range(1, stop + 1)]
    assert imported == [buffer.data_ptr()]
    brings([other], 0, ROWS)
    assert imported == [buffer.data_ptr(), other.data_ptr()] != [own, own]


def test_memory_is_held_while_it_is_lent_so_that_its_address_becomes_no_others():
    brings, rows = window(), aligned(ROWS, WIDTH)
    held = weakref.ref(rows)  # torch's memory keeps the array that it lies in
    brings([torch.from_numpy(rows)], 0, ROWS)
    del rows
    gc.collect()
    assert held() is not None
    brings(views(ROWS), 0, ROWS)
    gc.collect()
    assert held() is None


def aligned(*shape: int) -> np.ndarray:
    """float32 zeros at an address that can be lent."""
    raw = np.zeros(4 * int(np.prod(shape)) + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + raw.size - ALIGNMENT].view(np.float32).reshape(shape)


@pytest.mark.parametrize(
    "blocks",
    [
        lambda: [torch.cat(apart(3))],  # memory without room for an answer
        lambda: [torch.ones(9, WIDTH)[6:9]],  # row 0 lies elsewhere
        lambda: [views(3)[0][:2], apart(3)[0][2:]],
        lambda: [views(3, dtype=torch.bfloat16)[0]],
        lambda: [torch.ones(2 * ROWS, 2 * WIDTH)[:3, :WIDTH]],
        lambda: [torch.ones(3 * ROWS, WIDTH)[::2][:3]],
        lambda: [torch.ones(ROWS * WIDTH + 1)[1:].view(ROWS, WIDTH)[:3]],
    ],
    ids=["small", "displaced", "two memories", "dtype", "columns", "strides", "misaligned"],
)
def test_other_states_are_copied_into_one_buffer(blocks):
    given, brings = blocks(), window()
    brought = brings(given, 0, 3)
    assert brought.shape == (1, ROWS, WIDTH)
    np.testing.assert_array_equal(brought[0, :3], torch.cat([block.float() for block in given]))
    assert brings(apart(1, 3), 1, 4).unsafe_buffer_pointer() == brought.unsafe_buffer_pointer()


def test_states_are_brought_in_the_windows_own_dtype():
    brought = window(torch.bfloat16)([block.to(torch.float32) for block in apart(2, 3)], 1, 5)
    assert brought.dtype == jnp.bfloat16
    assert values(brought[0, 1:5, 0]) == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("made", [apart, views])
@pytest.mark.parametrize(("lengths", "stop"), [((2, 2), 5), ((2, 3), 4), ((), 1)])
def test_states_that_are_missing_or_too_many_are_refused(made, lengths, stop):
    told = f"a window of {ROWS} rows brings a state for each of {stop} tokens, got {sum(lengths)} states"
    with pytest.raises(ValueError, match=told):
        window()(made(*lengths) if lengths else (), 0, stop)


def test_an_answer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"each of 7 tokens, got 7 states: give all of them, or make it larger"):
        window()(apart(4, 3), 4, 7)


def on_devices():
    """The CPU's, and a GPU's where both frameworks have one."""
    gpus = [d for d in jax.local_devices() if d.platform != "cpu"] if torch.cuda.is_available() else []
    return [jax.local_devices(backend="cpu")[0], *gpus[:1]]


@pytest.mark.parametrize("device", on_devices(), ids=str)
def test_what_is_fetched_is_waited_for(device):
    """However late the array is; on a GPU it comes by torch, whose stream must wait for JAX's."""
    late = jax.jit(lambda x: (jax.lax.fori_loop(0, 200, lambda _, y: jnp.sin(y), x) * 0 + 7)[:5].astype(jnp.int32))
    given = jax.device_put(np.ones(400_000, np.float32), device)
    for _ in range(3):
        found = fetch(late(given))
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.tolist()) == (np.int32, [7] * 5)
