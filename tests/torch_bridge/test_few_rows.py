"""Attention of few tokens over a static cache equals its definition, whatever lies behind the used columns."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_bridge.few_rows import MOST_TOKENS, _attend_capacity, attend_few, attend_few_fixed

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COLUMNS = 200  # a split of the kernel is 64: lengths below meet its edges
HEADS = [(4, 4), (4, 2), (6, 1)]  # of the query, of the cache
LENGTHS = [0, 1, 63, 64, 127, COLUMNS - MOST_TOKENS]
# Of results up to 3: float32 rounds the scores of 128 numbers, 1.5e-6 in SDPA and in plain products; bfloat16 2**-7.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def inputs(heads: tuple[int, int], size: int = 16, dtype=torch.float32, device: str = "cpu") -> list[Tensor]:
    """A query of `MOST_TOKENS` tokens, laid out as a projection leaves it, and a cache without unused columns."""
    query = torch.randn(1, MOST_TOKENS, heads[0], size).transpose(1, 2)
    held = [torch.randn(1, heads[1], COLUMNS, size) for _ in range(2)]
    return [x.to(device, dtype) for x in (query, *held)]


def at(length: int, device: str = "cpu") -> Tensor:
    return torch.tensor([length], device=device)


def defined(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """What attention is, token by token and head by head, in float64."""
    result = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[1] // keys.shape[1]
    query, keys, values = query.cpu().double(), keys.cpu().double(), values.cpu().double()
    for head in range(query.shape[1]):
        for token in range(query.shape[2]):
            seen = slice(0, length + token + 1)
            scores = keys[0, head // group, seen] @ query[0, head, token] / query.shape[3] ** 0.5
            weights = (scores - scores.max()).exp()
            result[0, head, token] = weights @ values[0, head // group, seen] / weights.sum()
    return result


def poisoned(cache: Tensor, used: int, poison: float = float("nan")) -> Tensor:
    """The cache with `poison` in the columns that are not used."""
    cache = cache.clone()
    cache[:, :, used:] = poison
    return cache


def check_equals_definition(query: Tensor, keys: Tensor, values: Tensor, length: int) -> None:
    result = attend_few(query, keys, values, at(length, str(query.device)))
    assert result.dtype == query.dtype
    expected = defined(query, keys, values, length)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=TOLERANCE[query.dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("length", LENGTHS)
def test_it_equals_the_definition_at_every_length_and_grouping(heads, length, device):
    query, keys, values = inputs(heads, device=device)
    for tokens in (1, 2, 9, MOST_TOKENS):
        check_equals_definition(query[:, :, :tokens], keys, values, length)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [8, 24, 64, 128])
def test_any_head_size_is_served(size, device):
    check_equals_definition(*inputs((4, 2), size, device=device), 100)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_as_near_as_its_rounding(device):
    query, keys, values = inputs((4, 2), 32, torch.bfloat16, device)
    for tokens in (1, 6):
        check_equals_definition(query[:, :, :tokens], keys, values, 120)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("heads", HEADS)
def test_what_lies_behind_the_used_columns_does_not_matter(heads, poison, device):
    query, keys, values = inputs(heads, device=device)
    for tokens in (1, 6):
        few, length = query[:, :, :tokens], at(70, device)
        clean = attend_few(few, keys, values, length)
        assert torch.equal(attend_few(few, *(poisoned(x, 70 + tokens, poison) for x in (keys, values)), length), clean)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_the_form_that_does_not_look_at_the_length_is_the_same_attention(heads, tokens, device):
    query, keys, values = inputs(heads, device=device)
    query = query[:, :, :tokens]
    held = [poisoned(x, 70 + tokens) for x in (keys, values)]
    result = _attend_capacity(query, *held, at(70, device))
    expected = attend_few(query, *held, at(70, device))
    torch.testing.assert_close(result, expected, rtol=0, atol=2 * TOLERANCE[query.dtype])


def test_a_token_does_not_see_the_one_after_it():
    query, keys, values = inputs((4, 2))
    before = attend_few(query[:, :, :6], keys, values, at(50))
    keys[:, :, 53], values[:, :, 53] = 3.0, -3.0
    after = attend_few(query[:, :, :6], keys, values, at(50))
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.isclose(before[:, :, 3:], after[:, :, 3:]).all(-1).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("heads", HEADS)
def test_the_result_is_laid_out_token_by_token(heads, tokens, device):
    """Joining the heads copies nothing, and a compiler is told the strides that come."""
    query, keys, values = inputs(heads, device=device)
    result = attend_few(query[:, :, :tokens], keys, values, at(9, device))
    assert result.transpose(1, 2).is_contiguous()
    told = attend_few(query[:, :, :tokens].to("meta"), keys.to("meta"), values.to("meta"), at(9).to("meta"))
    assert (told.shape, told.dtype) == (result.shape, result.dtype)
    long = [dimension for dimension, size in enumerate(told.shape) if size > 1]  # the stride of one is never used
    assert [told.stride(d) for d in long] == [result.stride(d) for d in long]


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_traced_whole_and_once_for_all_lengths(device):
    query, keys, values = inputs((4, 2), device=device)
    query, traces = query[:, :, :6], []

    def backend(module, _):
        traces.append(module)
        return module

    def joined(query: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
        return attend_few(query, keys, values, length).transpose(1, 2).flatten(2)

    traced = torch.compile(joined, backend=backend, fullgraph=True)
    for length in (at(9, device), at(150, device)):
        assert torch.equal(traced(query, keys, values, length), joined(query, keys, values, length))
    assert len(traces) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_torchs_own_checks_of_an_operator_pass(device):
    query, keys, values = inputs((4, 2), device=device)
    found = torch.library.opcheck(attend_few, (query[:, :, :6], keys, values, at(9, device)))
    assert set(found.values()) == {"SUCCESS"}


def test_a_length_past_the_cache_is_refused():
    query, keys, values = inputs((4, 2))
    attend_few(query, keys, values, at(COLUMNS - MOST_TOKENS))
    for length in (COLUMNS - MOST_TOKENS + 1, -1):
        with pytest.raises(ValueError, match="must lie in the cache"):
            attend_few(query, keys, values, at(length))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v, n: (q.repeat(1, 1, 2, 1), k, v, n), "1 to 16 new tokens"),
        (lambda q, k, v, n: (q[:, :, :0], k, v, n), "1 to 16 new tokens"),
        (lambda q, k, v, n: (q.repeat(2, 1, 1, 1), k, v, n), "one text"),
        (lambda q, k, v, n: (q[:, :3], k, v, n), "h a multiple of k"),
        (lambda q, k, v, n: (q, k, v[:, :, 1:], n), "h a multiple of k"),
        (lambda q, k, v, n: (q, k[..., 1:], v[..., 1:], n), "h a multiple of k"),
        (lambda q, k, v, n: (q.bfloat16(), k, v, n), "one dtype"),
        (lambda q, k, v, n: (q, k, v, n.int()), "int64"),
        (lambda q, k, v, n: (q, k, v, n[0]), "int64"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(change, said):
    with pytest.raises(ValueError, match=said):
        attend_few(*change(*inputs((4, 2)), at(9)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("heads", HEADS)
def test_a_tokens_result_does_not_depend_on_those_read_with_it(heads, dtype, device):
    """On a GPU not in one bit: greedy ids of steps and of verifications are equal. On a CPU but for rounding."""
    query, keys, values = inputs(heads, 64, dtype, device)
    atol = 2 * TOLERANCE[dtype] if device == "cpu" else 0
    for length in LENGTHS:
        together = attend_few(query, keys, values, at(length, device))
        for tokens in (1, 2, 3, 6, 9, 15):
            for first in {0, 1, MOST_TOKENS - tokens}:
                some = slice(first, first + tokens)
                held = [poisoned(x, length + some.stop) for x in (keys, values)]
                apart = attend_few(query[:, :, some], *held, at(length + first, device))
                torch.testing.assert_close(apart, together[:, :, some], rtol=0, atol=atol)


def recorded(device: str, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call as a CUDA graph; on a CPU itself."""
    if device == "cpu":
        return call
    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [1, 6])
def test_what_was_recorded_once_serves_every_length(tokens, device):
    query, keys, values = inputs((4, 2), 64, device=device)
    length, query = at(9, device), query[:, :, :tokens]
    record = recorded(device, lambda: attend_few(query, keys, values, length))
    for now in (0, 63, 150, 20):
        length.fill_(now)
        result, expected = record().cpu().double(), defined(query, keys, values, now)
        torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE[query.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8, 8, 384, 16), (4, 2, 128, 32)])
def test_fixed_attention_has_the_same_bits_wherever_a_token_stands_among_the_new_ones(shape, dtype):
    """A pass of one length: a token is its first in plain decoding, any other one in a verification."""
    heads, held, columns, size = shape
    torch.manual_seed(0)
    keys, values = (torch.randn(1, held, columns, size).to(dtype) for _ in range(2))
    query, differing = torch.randn(1, heads, 16, size).to(dtype), 0
    for length in (0, 17, columns - 40):
        for place in range(8):
            cut = slice(place, place + 9)
            at = [torch.tensor([n]) for n in (length, length + place)]
            together, later = (
                attend_few_fixed(query[:, :, c], keys, values, n) for c, n in zip((slice(9), cut), at, strict=True)
            )
            assert torch.equal(together[:, :, place:], later[:, :, : 9 - place])
            torch.testing.assert_close(together, attend_few(query[:, :, :9], keys, values, at[0]), rtol=0.02, atol=0.02)
            one, other = (attend_few(query[:, :, c], keys, values, n) for c, n in zip((slice(9), cut), at, strict=True))
            differing += not torch.equal(one[:, :, place:], other[:, :, : 9 - place])
    assert differing or dtype != torch.float32, "else the usual form would do (as on some processors in 16 bits)"
