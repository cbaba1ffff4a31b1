"""Relatives trained on a store: killed and resumed to the bit, saved and loaded, refused in a line."""

import json
from types import SimpleNamespace

import pytest
import torch

import saelens_lite as sl
from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.errors import CheckpointError
from saelens_lite.sae.metrics import ReconstructionSums
from saelens_lite.train.autoencoders.learner import AutoencoderLearner
from saelens_lite.train.autoencoders.pca import PCALearner
from saelens_lite.train.autoencoders.single import train_autoencoder

SMALL = {
    "pca": {},
    "dense": {"sparsity_coeff": 0.1, "activation": "sigmoid", "weight_decay": 1e-4},
    "multilayer": {},
    "denoising": {},
    "contractive": {"hidden": (8,), "activation": "sigmoid"},
    "variational": {},
    "convolutional": {},
    "deep_belief": {"activation": "sigmoid", "hidden": (10, 8)},
}
KINDS = pytest.mark.parametrize("kind", SMALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """1,200 pictures of 1 × 4 × 4: sums of three bars, with noise."""
    generator = torch.Generator().manual_seed(0)
    bars = torch.cat([torch.eye(4).repeat_interleave(4, 1), torch.eye(4).repeat(1, 4)])
    on = (torch.rand(1200, 8, generator=generator) < 0.3).float()
    pictures = (on @ bars + 0.1 * torch.randn(1200, 16, generator=generator)).view(-1, 1, 4, 4)
    return sl.ActivationStore.from_arrays(tmp_path_factory.mktemp("bars") / "store", pictures)


def train(store, output, kind="dense", **fields):
    options = {"code_size": 3, "n_steps": 24, "batch_size_rows": 64, "device": "cpu", "progress": False}
    options |= {"checkpoint_every_steps": 7, "held_out_fraction": 0.2, "log_every_steps": 4}
    options |= {"buffer_rows": 2048}
    return train_autoencoder(store, kind=kind, output=str(output), **options | SMALL[kind] | fields)


def lines(output):
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in found]


class Killed(BaseException):
    pass


@KINDS
def test_a_killed_run_resumes_to_the_bit(store, tmp_path, kind, monkeypatch):
    whole = train(store, tmp_path / "whole", kind)
    learner = PCALearner if kind == "pca" else AutoencoderLearner
    update = learner.update

    def killed(self, batch):
        if self.steps_done == 17:
            raise Killed
        return update(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(learner, "update", killed)
        train(store, tmp_path / "killed", kind)
    torch.rand(3)  # draws of others do not matter
    resumed = train(store, tmp_path / "killed", kind)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert not (tmp_path / "killed" / "state").exists()


@KINDS
def test_what_is_saved_loads_and_scores_as_its_metadata_say(store, tmp_path, kind):
    trained = train(store, tmp_path, kind)
    loaded = Autoencoder.load(tmp_path)
    assert type(loaded) is type(trained) and loaded.config == trained.config
    assert loaded.metadata == json.loads(json.dumps(trained.metadata))
    assert (loaded.hook_point, loaded.code_size, loaded.shape) == ("acts", 3, (1, 4, 4))
    rows = store.gather(torch.arange(100))
    assert torch.equal(loaded(rows).recons, trained(rows).recons)
    assert loaded.metadata["steps"] == 24 and loaded.metadata["train"]["kind"] == kind
    assert train(store, tmp_path, kind).metadata == loaded.metadata  # finished already
    assert loaded.metadata["held_out_fvu"] < 1.5


def test_the_same_seed_gives_the_same_weights_whatever_else_is_drawn(store, tmp_path):
    first = train(store, tmp_path / "a")
    state = torch.get_rng_state()
    again = train(store, tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.encoder[0].weight, again.encoder[0].weight)
    other = train(store, tmp_path / "c", seed=1)
    assert not torch.equal(first.encoder[0].weight, other.encoder[0].weight)


def test_each_step_draws_anew_and_repeats_its_draws():
    learner = AutoencoderLearner.__new__(AutoencoderLearner)
    learner.config, learner.device = SimpleNamespace(seed=3), torch.device("cpu")

    def drawn(step):
        learner.steps_done = step
        return torch.rand(1, generator=learner.draws()).item()

    assert len({drawn(step) for step in range(5)}) == 5 and drawn(2) == drawn(2)


@pytest.mark.long
def test_none_with_a_linear_decoder_is_below_pca_on_the_rows_trained_on(store, tmp_path):
    """Bourlard & Kamp 1988: no affine map of three numbers leaves less than the first three components."""
    rows, fvu = store.gather(torch.arange(store.n_rows)), {}
    for kind in ("pca", "dense", "denoising", "contractive", "convolutional"):
        linear = {} if kind == "pca" else {"activation": "linear", "n_steps": 150, "lr": 1e-2}
        linear |= {"hidden": None} if kind == "contractive" else {}
        linear |= {"sparsity_coeff": 0.0} if kind == "dense" else {}
        trained = train(
            store,
            tmp_path / kind,
            kind,
            **{"held_out_fraction": 0.0, "n_steps": 18, "checkpoint_every_steps": 500} | linear,
        )
        sums = ReconstructionSums(16)
        sums.update(rows, trained(rows).recons)
        fvu[kind] = sums.fvu
    assert min(fvu, key=fvu.get) == "pca" and fvu["pca"] > 0.1
    assert fvu["dense"] < fvu["pca"] + 0.05, "it comes near, so the comparison is no empty one"


def test_another_run_or_an_sae_in_the_output_is_refused(store, tmp_path):
    train(store, tmp_path / "dense")
    with pytest.raises(ValueError, match="holds another run, finished: code_size expected 3, got 4"):
        train(store, tmp_path / "dense", code_size=4)
    with pytest.raises(ValueError, match="another kind of training wrote"):
        sl.train_sae(store, output=str(tmp_path / "dense"), device="cpu", batch_size_rows=64, k=2)
    sl.train_sae(
        store, output=str(tmp_path / "sae"), device="cpu", batch_size_rows=64, k=2, d_sae=8, n_steps=2
    )
    with pytest.raises(ValueError, match="another kind of training wrote"):
        train(store, tmp_path / "sae")
    assert train(store, tmp_path / "dense", code_size=4, overwrite=True).code_size == 4
    train(store, tmp_path / "sae", overwrite=True)
    left = {"autoencoder.safetensors", "metrics.jsonl", "train_config.json"}
    assert {p.name for p in (tmp_path / "sae").iterdir() if not p.name.startswith(".")} == left
    assert train(store, tmp_path / "sae").code_size == 3


def test_rows_outside_of_probabilities_and_rows_without_a_shape_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"output_activation sigmoid expected rows in \[0, 1\], got -0"):
        train(store, tmp_path / "a", output_activation="sigmoid")
    flat = sl.ActivationStore.from_arrays(tmp_path / "flat", store.gather(torch.arange(300)))
    with pytest.raises(ValueError, match="convolutional expected rows of a shape"):
        train(flat, tmp_path / "b", "convolutional")


def test_arrays_train_without_a_store_of_ones_own(store, tmp_path):
    rows = store.gather(torch.arange(600)).view(-1, 1, 4, 4)
    trained = train(rows, tmp_path, n_steps=3)
    assert trained.shape == (1, 4, 4) and trained.metadata["steps"] == 3
    assert train(rows.numpy(), tmp_path, n_steps=3).metadata == Autoencoder.load(tmp_path).metadata


def test_a_damaged_file_is_named(store, tmp_path):
    train(store, tmp_path, n_steps=2)
    path = tmp_path / "autoencoder.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="autoencoder.safetensors expected 'saelens_lite autoencoder'"):
        Autoencoder.load(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        Autoencoder.load(tmp_path / "elsewhere")


def test_the_phases_of_a_deep_belief_network_end_with_unrolled_weights(store, tmp_path):
    """24 steps, half of them in three phases of 4; after 12 the decoder's weights are the encoder's."""
    seen = []
    trained = train(store, tmp_path / "a", "deep_belief", n_steps=12, pretrain_fraction=1.0)
    for forth, back in zip(trained.encoder, reversed(trained.decoder), strict=True):
        seen.append(torch.equal(forth.weight.T, back.weight))
    assert seen == [True, True, True]
    tuned = train(store, tmp_path / "b", "deep_belief")
    assert not torch.equal(tuned.encoder[0].weight.T, tuned.decoder[-1].weight)
