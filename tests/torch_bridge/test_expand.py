"""Expanded 4-bit layers: the numbers of the library's own products, the same model in words, more memory."""

import pytest
import torch

from tests.torch_bridge.fake_pair import fake_clips
from torch_bridge import expand as module
from torch_bridge.answers import Batch
from torch_bridge.expand import expand, is_expanded
from torch_bridge.extraction import Settings, extract_split
from torch_bridge.footprint import footprint
from torch_bridge.fused_projections import fuse, queries_keys_values
from torch_bridge.nf4.linear import FusedNF4Linear, fuse_nf4
from torch_bridge.pair import load_pair
from torch_bridge.quantize import is_4bit
from xmsd_jax.config import UserError
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline.pair import PairConfig, pair_options

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(dtype: str = "float32", compute: str | None = None):
    policy = Quantisation(format="nf4", compute=compute or dtype)
    return load_pair(**pair_options(PairConfig(dtype=dtype, quantisation=policy)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows_give_the_very_states_and_logits_of_the_librarys_products(dtype):
    clips = davis_clips()[:1]
    for vlm in pair(dtype):
        before = Batch(vlm, clips, QUESTIONS).answer(8)
        told = vlm.fingerprint, vlm.quantisation, vlm.dtype, vlm.device
        assert expand(vlm, "always")
        assert is_expanded(vlm)
        after = Batch(vlm, clips, QUESTIONS).answer(8)
        assert torch.equal(after.ids, before.ids)
        assert torch.equal(after.hidden, before.hidden)
        assert torch.equal(vlm.lm_head(after.hidden), vlm.lm_head(before.hidden))
        assert (vlm.fingerprint, vlm.quantisation, vlm.dtype, vlm.device) == told
        assert not expand(vlm, "always"), "there is nothing more to expand"


@pytest.mark.parametrize(("wanted", "expanded"), [("always", ["target", "drafter"]), ("auto", [])])
def test_a_store_says_which_models_were_expanded(tmp_path, wanted, expanded):
    folder = fake_clips(tmp_path / "clips", {"test": 1})
    settings = Settings(questions=(0,), max_new_tokens=2, expand=wanted)
    store = Store.open(extract_split(tmp_path / "store", folder, "test", *pair(), settings))
    assert [note["expanded"] for note in store.notes().values()] == [expanded]


def test_the_fingerprint_is_the_same_when_it_is_first_asked_for_afterwards():
    (one, _), (other, _) = pair(), pair()
    expand(one, "always")
    assert one.fingerprint == other.fingerprint


def test_the_footprint_says_what_is_held_now():
    vlm = pair("bfloat16")[0]
    before = vlm.footprint.parts
    numbers = sum(m.in_features * m.out_features for m in vlm.language_model.modules() if is_4bit(m))
    expand(vlm, "always")
    after = vlm.footprint.parts
    assert after["linears"].weights - before["linears"].weights == numbers * 2 - numbers // 2
    assert after["linears"].scales == 0
    assert {name: part for name, part in after.items() if name != "linears"} == {
        name: part for name, part in before.items() if name != "linears"
    }
    assert footprint(vlm.language_model).parts["linears"].weights == numbers * 2


def test_layers_with_a_kernel_of_their_own_are_not_expanded_and_count_as_they_did():
    vlm = pair("bfloat16")[0]
    before = vlm.footprint.parts["linears"]
    assert fuse_nf4(vlm.language_model)
    after = vlm.footprint.parts["linears"]
    assert not is_expanded(vlm)
    assert not expand(vlm, "always")
    assert after.scales == before.scales
    tiles = {m.tiles.untyped_storage().data_ptr(): m.tiles.untyped_storage().nbytes() for m in vlm.model.modules()
             if isinstance(m, FusedNF4Linear)}  # fmt: skip
    held = sum(m.weight.numel() for m in vlm.model.modules() if is_4bit(m))
    assert after.weights == sum(tiles.values()) + held, "joined layers share their tiles, which are counted once"


def test_joined_layers_are_expanded_each_for_itself():
    vlm = pair("bfloat16")[0]
    fuse(vlm.language_model)
    assert expand(vlm, "always")
    assert is_expanded(vlm)
    x = torch.randn(1, 3, vlm.language_model.config.hidden_size, dtype=torch.bfloat16)
    for layer in vlm.language_model.layers:
        block = layer.self_attn
        query = block.q_proj(x).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
        assert torch.equal(queries_keys_values(block, x)[0], query)
    assert fuse(vlm.language_model) > 0, "as dense ones they can be joined again"


def test_a_quantised_tower_stays_a_tower_where_its_layers_have_the_kernel():
    policy = Quantisation(format="nf4", keep=("lm_head",))
    vlm = load_pair(**pair_options(PairConfig(dtype="bfloat16", quantisation=policy)))[1]
    before = vlm.footprint.parts
    assert fuse_nf4(vlm.model)
    assert {name: part.scales for name, part in vlm.footprint.parts.items()} == {
        name: part.scales for name, part in before.items()
    }


def test_layers_that_multiply_in_another_dtype_are_left():
    vlm = pair("float32", compute="bfloat16")[0]
    assert not expand(vlm, "always")
    assert not is_expanded(vlm)


@pytest.mark.parametrize(("wanted", "free", "done"), [("never", 1e12, False), ("auto", 1e12, True), ("auto", 1, False)])
def test_auto_asks_for_room_on_a_gpu(monkeypatch, wanted, free, done):
    vlm = pair()[0]
    assert not expand(vlm, "auto"), "on a CPU it never is done by itself"
    monkeypatch.setattr(type(vlm), "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(1e12)))
    assert expand(vlm, wanted) is done
    assert is_expanded(vlm) is done


def test_weights_that_do_not_fit_are_a_clear_error(monkeypatch):
    def full(layer, dtype):
        raise torch.OutOfMemoryError("as a GPU says it")

    monkeypatch.setattr(module, "_full", full)
    with pytest.raises(UserError, match=r"^expand: the full weights of video-llava\S+ do not fit.*set expand to auto$"):
        expand(pair()[0], "always")
