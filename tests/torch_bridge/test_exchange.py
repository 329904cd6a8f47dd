"""What crosses from torch to JAX is the same memory, or a copy that was asked for; nothing changes in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from torch_bridge.exchange import ALIGNMENT, TorchWindow, copy, lend, share

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


def blocks(*lengths: int) -> list[torch.Tensor]:
    """Row t of the joined blocks holds t + 1."""
    rows = torch.arange(1.0, sum(lengths) + 1)[:, None].expand(-1, WIDTH)
    return list(rows.split(lengths))


@pytest.mark.parametrize("lengths", [(9,), (4, 5), (1, 2, 1, 3, 2), (3, 0, 6)], ids=str)
@pytest.mark.parametrize("start", range(3, 10))
def test_a_window_holds_the_joined_rows_from_start_first(lengths, start):
    brought = window()(blocks(*lengths), start)
    assert (brought.shape, brought.dtype) == ((1, ROWS, WIDTH), jnp.float32)
    held = np.array(brought[0])
    np.testing.assert_array_equal(held[: 9 - start], torch.cat(blocks(*lengths))[start:])
    assert np.isfinite(held).all()


def test_states_are_brought_in_the_windows_own_dtype():
    brought = window()([block.to(torch.bfloat16) for block in blocks(2, 3)], 1)
    assert values(brought[0, :4, 0]) == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(("lengths", "start", "asked"), [((7,), 0, 7), ((4, 5), 2, 7), ((2,), 3, -1)])
def test_rows_that_do_not_fit_are_refused(lengths, start, asked):
    with pytest.raises(ValueError, match=f"a window of {ROWS} rows was asked for {asked}: read the states in portions"):
        window()(blocks(*lengths), start)


def test_a_window_is_lent_until_its_next_call():
    brought = window()
    first = brought(blocks(3), 0)
    assert brought([block + 40 for block in blocks(3)], 0).unsafe_buffer_pointer() == first.unsafe_buffer_pointer()
    assert values(first[0, :3, 0]) == [41.0, 42.0, 43.0]


def test_after_a_result_was_fetched_the_window_may_be_written_again():
    """A call that was only dispatched may still read the window. Its fetched result can no longer change, so a drafter
    that fetches its ids may be given the next states in the same memory."""
    brought, fetched = window(), []
    call = jax.jit(lambda states: jnp.cumsum(states @ states[0].T @ states, axis=1)[0, :, 0])
    for turn in range(20):
        fetched.append(np.asarray(call(brought([block + turn for block in blocks(2, 4)], 0))))
    for turn, found in enumerate(fetched):
        states = torch.cat(blocks(2, 4)).numpy() + turn
        np.testing.assert_allclose(found, np.cumsum(states @ states.T @ states, axis=0)[:, 0], rtol=1e-5)
