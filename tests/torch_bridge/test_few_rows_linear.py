"""Products of few rows and a sum after them are what their parts are, one after the other."""

import pytest
import torch
from torch import Tensor

from torch_bridge.few_rows_linear import linear_few

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(96, 256), (50, 320), (1000, 4096), (16, 16), (64, 1032)]


def given(shape: tuple[int, int], count: int, device: str, dtype=torch.bfloat16) -> list[Tensor]:
    """x, weight and residual."""
    torch.manual_seed(0)
    x, weight, residual = (torch.randn(size) for size in ((count, shape[1]), shape, (count, shape[0])))
    x = x * torch.logspace(-2, 2, count)[:, None]
    return [one.to(device, dtype) for one in (x, weight / shape[1] ** 0.5, residual)]


def relative(found: Tensor, expected: Tensor) -> Tensor:
    return (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 6, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_and_a_sum(shape, count, device):
    x, weight, residual = given(shape, count, device)
    for added in (None, residual):
        expected = x.double() @ weight.double().T + (0 if added is None else added.double())
        found = linear_few(x, weight, added)
        assert found.dtype == torch.bfloat16
        assert relative(found, expected).max() < 4e-3


@pytest.mark.parametrize("device", DEVICES)
def test_leading_dimensions_and_half_precision(device):
    x, weight, residual = given((96, 256), 6, device, torch.float16)
    found = linear_few(x.view(2, 3, 256), weight, residual.view(2, 3, 96))
    assert torch.equal(found, linear_few(x, weight, residual).view(2, 3, 96))
    assert relative(found.flatten(0, 1), x.double() @ weight.double().T + residual.double()).max() < 1e-3


def test_the_operation_is_known_to_torch():
    x, weight, residual = given((96, 256), 3, "cpu")
    tests = ("test_schema", "test_faketensor")
    for call in ((x, weight), (x[None], weight, residual[None])):
        assert torch.library.opcheck(linear_few, call, test_utils=tests) == dict.fromkeys(tests, "SUCCESS")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, w, r: (x.repeat(3, 1), w), "1 to 16 rows"),
        (lambda x, w, r: (x[:0], w), "1 to 16 rows"),
        (lambda x, w, r: (x.float(), w.float()), "16 bits"),
        (lambda x, w, r: (x, w.T), "the weight must be"),
        (lambda x, w, r: (x, w.half()), "the weight must be"),
        (lambda x, w, r: (x, w, r[:, 1:]), "the residual must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        linear_few(*change(*given((96, 256), 6, "cpu")))


if torch.cuda.is_available():

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_rows_bits_are_the_same_for_every_number_of_rows(shape):
        x, weight, residual = given(shape, 16, "cuda")
        for added in (None, residual):
            whole = linear_few(x, weight, added)
            assert torch.equal(linear_few(x, weight, added), whole)
            for count in range(1, 16):
                for first in {0, 1, 16 - count}:
                    some = slice(first, first + count)
                    part = linear_few(x[some], weight, None if added is None else added[some])
                    assert torch.equal(part, whole[some])

    def test_a_captured_chain_gives_the_same_bits():
        """Each launch may begin while the one before it runs."""
        x, weight, residual = given((512, 512), 6, "cuda")

        def chain() -> Tensor:
            made = x
            for _ in range(40):
                made = linear_few(made, weight, residual)
            return made

        expected, graph = chain(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain()
        for _ in range(5):
            graph.replay()
            assert torch.equal(found, expected)
