"""The PyTorch baseline computes what the JAX adapters and their train step compute, and is compiled as one graph."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch._dynamo import config as dynamo

from tests.adapters.small import COUNTS, FACTS, LENGTH, WIDTH, every, head, lively, streams
from torch_bridge.plain_adapters import PLAIN, load_plain, make_plain
from torch_bridge.plain_layers import SelfAttention
from torch_bridge.plain_training import PlainData, PlainTrainer
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import make
from xmsd_jax.adapters.torch_names import PREFIXES, to_torch
from xmsd_jax.config import ConfigError
from xmsd_jax.training.losses import Objective, Truth
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.state import Hyper, Skeleton, begin, updated

LENGTHS = np.array([LENGTH, 7, 4, LENGTH, 1, 0])
ROWS = np.array([0, 5, 2, 1, -1])  # one answer that is empty, and one row of padding
RATES = [1e-2, 1e-2, 1e-2, 3e-3, 3e-3, 3e-3]
ATTENDING = ("L4", "L5", "B1", "L5F")
CASES = [(kind, "fused") for kind in PLAIN] + [(kind, "matmul") for kind in ATTENDING]


def plain(kind: str, attention="fused", dropout: float = 0.0):
    """A baseline with the parameters of the lively JAX adapter."""
    module = make_plain(kind, WIDTH, dropout=dropout, attention=attention)
    load_plain(module, to_torch(lively(kind), kind))
    return module


def torch_of(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def masks() -> tuple[np.ndarray, np.ndarray]:
    places = np.arange(LENGTH)
    return places < LENGTHS[:, None], places + 1 < LENGTHS[:, None]


def data() -> PlainData:
    """States that bfloat16 holds exactly, so that both sides start from the same."""
    drafter, target = (torch_of(x).bfloat16() for x in streams(len(LENGTHS)))
    return PlainData(drafter, target, *(torch_of(mask) for mask in masks()))


def trainer(kind: str, *, dropout: float = 0.0, attention="fused", **changes) -> PlainTrainer:
    settings = {"offset": FACTS[kind].offset, "learning_rate": RATES[0], "precision": "float32", **changes}
    return PlainTrainer(plain(kind, attention, dropout), data(), **settings)


def losses(plain_trainer: PlainTrainer) -> list[float]:
    """Of a step for each of RATES; none but the first may compile anything."""
    found = []
    for step, rate in enumerate(RATES):
        plain_trainer.learning_rate.fill_(rate)
        with dynamo.patch(error_on_recompile=step > 0):
            found.append(plain_trainer.step(torch.from_numpy(ROWS)).item())
    return found


def jax_losses(kind: str) -> list[float]:
    """The same by the JAX adapter, the study's objective and this project's optimiser."""
    skeleton, params = Skeleton.split(lively(kind))
    objective, hyper = Objective(name="study", offset=FACTS[kind].offset), Hyper.of(Recipe())
    kept = [jnp.asarray(mask[ROWS] & (ROWS >= 0)[:, None]) for mask in masks()]
    given = Streams(*(jnp.asarray(states.float().numpy()[ROWS]) for states in data()[:2]))
    truth = Truth(given.target, jnp.zeros(kept[0].shape, jnp.int32), *kept)

    def loss(params):
        return objective.value(objective.sums(skeleton.adapter(params)(given, kept[0]), truth, head()))

    @jax.jit
    def step(state, rate):
        value, gradient = jax.value_and_grad(loss)(state.params)
        return value, updated(state, gradient, rate, hyper)

    found, state = [], begin(params)
    for rate in RATES:
        value, state = step(state, jnp.float32(rate))
        found.append(float(value))
    return found


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_it_computes_what_the_jax_adapter_computes(kind, attention):
    given, full = streams(), every()
    mask = full & (jnp.arange(LENGTH) < jnp.asarray([LENGTH, 7, 4])[:, None])
    module = plain(kind, attention).eval()
    for kept in (np.asarray(full), np.asarray(mask)):
        with torch.no_grad():
            found = module(*(torch_of(x) for x in given), torch_of(kept)).numpy()
        np.testing.assert_allclose(found[kept], lively(kind)(given, kept)[kept], atol=1e-5, rtol=1e-5)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", PLAIN)
def test_it_has_the_study_parameters(kind):
    with torch.device("meta"):
        module = make_plain(kind, 4096)
    assert sum(value.numel() for value in module.parameters()) == COUNTS[kind]
    assert module.state_dict().keys() == to_torch(make(kind, WIDTH), kind).keys()
    assert PLAIN.keys() == PREFIXES.keys()


def test_initial_values_are_the_study_ones():
    torch.manual_seed(0)
    for kind in ("L1", "L3", "L5F"):
        ours, theirs = to_torch(make(kind, 256), kind), make_plain(kind, 256).state_dict()
        for name, value in theirs.items():
            assert value.std(correction=0).item() == pytest.approx(np.std(ours[name]), rel=0.1), name
            assert value.mean().item() == pytest.approx(np.mean(ours[name]), abs=0.02), name


@pytest.mark.parametrize("kind", ["L3", "L4", "B1", "L5F"])
def test_its_training_goes_as_the_jax_training_does(kind):
    np.testing.assert_allclose(losses(trainer(kind)), jax_losses(kind), rtol=1e-5)


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_the_whole_step_is_one_graph_that_does_what_the_eager_step_does(kind, attention):
    eager, compiled = (
        trainer(kind, attention=attention, mode=mode, _backend="aot_eager") for mode in (None, "default")
    )
    np.testing.assert_allclose(losses(compiled), losses(eager), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own import, in torch 2.13
@pytest.mark.parametrize("kind", ["L2", "L5F"])
def test_inductor_compiles_it_to_the_same(kind):
    np.testing.assert_allclose(losses(trainer(kind, mode="default")), losses(trainer(kind)), rtol=1e-5)


@pytest.mark.slow
def test_many_trainers_are_compiled_in_one_process():
    for width in range(16, 160, 16):  # more than the compiler's own limit, 8
        states = torch.randn(2, 3, width)
        given = PlainData(states, states, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))
        one = PlainTrainer(
            make_plain("L1", width), given, offset=0, learning_rate=1e-3, mode="default", _backend="aot_eager"
        )
        assert torch.isfinite(one.step(torch.arange(2)))


@pytest.mark.parametrize("kind", ["L2", "L4", "L5F"])
def test_half_precision_trains_to_nearly_the_same(kind):
    found = losses(trainer(kind, precision="bfloat16"))
    np.testing.assert_allclose(found, losses(trainer(kind)), rtol=0.02)
    assert found[-1] < found[0]


def test_no_gradient_is_kept_and_weights_stay_float32():
    one = trainer("L1", precision="bfloat16")
    loss = one.step(torch.from_numpy(ROWS))
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), torch.float32, False)
    assert all(value.grad is None and value.dtype == torch.float32 for value in one.module.parameters())


def test_a_batch_of_padding_has_loss_zero():
    assert trainer("L4").step(torch.tensor([-1, 5])).item() == 0


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_dropout_acts_in_training_only(kind, attention):
    module = plain(kind, attention, 0.1)
    run = partial(module, *(torch_of(x) for x in streams()), torch_of(every()))
    assert not torch.equal(run(), run())
    module.eval()
    assert torch.equal(run(), run())


@pytest.mark.parametrize("attention", ["fused", "matmul"])
def test_attention_weights_are_dropped_without_bias(attention):
    module = SelfAttention(WIDTH, 0.1, attention)
    x = torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        drawn = module(x.expand(20_000, -1, -1), None)
        torch.testing.assert_close(drawn.mean(0), module.eval()(x, None)[0], atol=5e-3, rtol=0)
    assert drawn.std(0).min() > 1e-3


@pytest.mark.parametrize("mode", [None, "default"])
def test_dropout_is_drawn_anew_at_every_step(mode):
    one = trainer("L5", dropout=0.1, mode=mode, _backend="aot_eager", learning_rate=0.0)
    found = [one.step(torch.from_numpy(ROWS)).item() for _ in range(4)]
    assert len(set(found)) == 4


def test_a_state_dict_of_another_kind_is_refused_in_one_line():
    state = to_torch(lively("L1"), "L1")
    with pytest.raises(ConfigError, match=r"missing blocks\.0\.alpha_param.*unknown layers\.0\.up_proj\.weight"):
        load_plain(make_plain("L2", WIDTH), state)
    with pytest.raises(ConfigError, match=rf"final_norm\.bias is \[{WIDTH}\], needed is \[64\]"):
        load_plain(make_plain("L1", 64), state)


def test_leading_axes_of_one_are_read():
    state = to_torch(lively("L5"), "L5")
    leading = {name: value[None] if name in ("alpha", "pos_embed") else value for name, value in state.items()}
    module = make_plain("L5", WIDTH)
    load_plain(module, leading)
    np.testing.assert_array_equal(module.state_dict()["pos_embed"].numpy(), state["pos_embed"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kind": "L6"}, "no such kind; known: L1, L2"),
        ({"width": 24}, "multiple of 16"),
        ({"blocks": 2, "kind": "L4"}, "L4 takes none"),
        ({"blocks": 0}, "at least 1"),
    ],
)
def test_adapters_that_do_not_exist_are_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        make_plain(**{"kind": "L1", "width": WIDTH, **wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"offset": 2}, "must be 0 or 1, got 2"),
        ({"precision": "float16"}, "bfloat16 or float32"),
        ({"mode": "max-autotune"}, "None, default or reduce-overhead"),
    ],
)
def test_settings_that_do_not_exist_are_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        trainer("L1", **wrong)


def test_streams_that_are_read_must_be_given():
    with pytest.raises(ConfigError, match="reads the drafter's states"):
        PlainTrainer(plain("L5F"), data()._replace(drafter=None), offset=1, learning_rate=1e-3)
    only_target = data()._replace(drafter=None)
    assert torch.isfinite(PlainTrainer(plain("B1"), only_target, offset=1, learning_rate=1e-3).step(torch.arange(2)))
