"""The same place under two names is one place, for stores, SAEs, evaluations, edits and harvests."""

import dataclasses

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.latents.compatibility import fits
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.places import Place, place_among, same_place

POST, MODULE = "blocks.1.hook_resid_post", "transformer.h.1"
TEXTS = [f"Story {i} of sun and moon. " * (1 + i % 3) for i in range(20)]
SIZE = {"max_tokens": 300, "context_length": 16, "dtype": "float32", "progress": False}


@pytest.mark.parametrize(
    "one, other, same",
    [
        (Place(POST), Place(POST), True),
        (Place(POST, MODULE), Place(MODULE), True),  # recorded beside the name
        (Place(POST), Place(MODULE, MODULE), True),  # the path alone names block 1
        (Place(POST), Place("model.language_model.layers.1"), True),
        (Place(POST), Place("transformer.h.11"), False),
        (Place(POST), Place("transformer.h.1.mlp"), False),
        (Place(POST), Place("model.vision_tower.layers.1"), False),
        (Place(POST), Place("stages.2.blocks.1"), False),
        (Place(POST, "model.layers.1"), Place("other.layers.1"), False),  # recorded, and another
        (Place("blocks.1.hook_resid_pre", MODULE), Place(MODULE), False),  # what the block takes
        (Place("blocks.1.hook_mlp_out", "transformer.h.1.mlp"), Place("transformer.h.1.mlp"), True),
        (Place("blocks.1.mlp.hook_in", "transformer.h.1.mlp"), Place("transformer.h.1.mlp"), False),
        (Place("blocks.1.hook_attn_out", "a.1.o"), Place("blocks.1.hook_mlp_out", "a.1.o"), False),
    ],
)
def test_two_names(one, other, same):
    assert same_place(one, other) is same_place(other, one) is same


def test_an_exact_name_wins():
    points = {MODULE: {"module_path": MODULE}, POST: {"module_path": MODULE}}
    assert [place_among(Place(name), points) for name in (POST, MODULE)] == [POST, MODULE]


@pytest.fixture
def stores(gpt2, byte_tokenizer, tmp_path):
    """Of one model and text, under the one name and the other."""
    return [
        sl.harvest_activations(gpt2, TEXTS, [name], tmp_path / name, tokenizer=byte_tokenizer, **SIZE)
        for name in (POST, MODULE)
    ]


def sae_at(**place) -> sl.SparseAutoencoder:
    torch.manual_seed(0)
    return sl.SparseAutoencoder(SAEConfig(d_model=32, d_sae=48, k=4, **place))


def test_a_store_gives_its_rows_by_either_name(stores):
    by_name, by_module = stores
    assert by_name.hook_point(MODULE) == POST and by_module.hook_point(POST) == MODULE
    assert torch.equal(by_name.acts(0, MODULE), by_module.acts(0, POST))
    assert torch.equal(by_name.mean(MODULE), by_module.mean(POST))
    with pytest.raises(ValueError, match="has no hook point 'transformer.h.0'"):
        by_name.hook_point("transformer.h.0")


@pytest.mark.long
def test_an_sae_fits_the_store_and_the_model_by_either_name(stores, gpt2):
    for store in stores:
        (name,) = store.hook_points
        for sae in (
            sae_at(hook_point=POST),
            sae_at(hook_point=MODULE),  # as SAELens' trainer writes it for a Hugging Face model
            sae_at(hook_point=POST, hf_module=MODULE),
            sae_at(hf_module=MODULE),
        ):
            assert fits(sae, store) == name
            scores = sl.evaluate_sae(sae, store, gpt2, held_out=False)
            assert scores.hook_point == name and scores.ce_clean is not None
            assert fits(sae, gpt2, name, vouched=False) == name
        elsewhere = sae_at(hook_point="blocks.0.hook_resid_post", hf_module="transformer.h.0")
        with pytest.raises(ValueError, match=rf"expected one of {name}, got .* at blocks.0.hook_resid_post"):
            fits(elsewhere, store)
        with pytest.raises(ValueError, match=rf"expected one of {name}, got"):
            fits(elsewhere, gpt2, name, vouched=False)


@pytest.mark.long
def test_stores_of_one_place_are_trained_on_together(stores, tmp_path):
    some = {"k": 4, "d_sae": 48, "n_steps": 3, "batch_size_rows": 64, "device": "cpu"}
    sae = sl.train_sae(stores, output=tmp_path / "sae", **some)
    assert sae.config.hook_point == POST
    again = sl.train_sae(stores[0], hook_point=MODULE, output=tmp_path / "other", **some)
    assert again.config.hook_point == POST


def test_one_place_is_named_once(stores, gpt2, byte_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="each place once, got two names of one in"):
        sl.harvest_activations(gpt2, TEXTS, [POST, MODULE], tmp_path / "s", tokenizer=byte_tokenizer, **SIZE)
    with pytest.raises(ValueError, match="each place once, got two names of one in"):
        with sl.ablate(gpt2, sae_at(), 1, hook_point=[POST, MODULE]):
            pass
    assert sl.add_hook_points(stores[0], MODULE, model=gpt2, progress=False).hook_points == [POST]


def test_a_note_on_another_store_only_where_one_is_recorded(stores):
    silent = sl.evaluate_sae(sae_at(hook_point=POST), stores[0], held_out_fraction=0.3)
    assert silent.same_store is None and "records no store" in str(silent)
    told = sae_at(hook_point=POST)
    for store, same in ((stores[0].fingerprint, True), ("another", False)):
        told.config = dataclasses.replace(told.config, metadata={"saelens_lite": {"store": store}})
        found = sl.evaluate_sae(told, stores[0], held_out_fraction=0.3)
        assert found.same_store is same and ("another store" in str(found)) is not same
