"""The SAE's equations, worked by hand and against dense torch; its sparse latents."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents


def sae_of(kind, k=None, d_model=6, d_sae=20, seed=0, **fields):
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind=kind, k=k, **fields))
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) * 0.5)
    return sae


def test_topk_by_hand():
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=3, kind="topk", k=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
    # (3, −1) − b_dec = (2, −1); pre_acts = (2, −0.5, −2); the two largest are 2 and −0.5, which ReLU cuts
    out = sae(torch.tensor([3.0, -1.0]))
    assert_close(out.latents.to_dense(), torch.tensor([2.0, 0.0, 0.0]))
    assert out.latents.l0().item() == 1
    assert_close(out.recons, torch.tensor([3.0, 0.0]))


def test_jumprelu_is_strict_at_its_threshold():
    sae = SparseAutoencoder(SAEConfig(d_model=1, d_sae=1, kind="jumprelu"))
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.threshold.fill_(0.5)
    assert sae.encode_dense(torch.tensor([[0.4], [0.5], [0.6], [-1.0]])).flatten().tolist() == pytest.approx(
        [0, 0, 0.6, 0]
    )


def test_gated_by_hand():
    sae = SparseAutoencoder(SAEConfig(d_model=1, d_sae=1, kind="gated"))
    with torch.no_grad():
        sae.W_enc.fill_(2.0)
        sae.b_gate.fill_(-1.0)
        sae.b_mag.fill_(0.25)
        sae.r_mag.fill_(torch.tensor(3.0).log())
    # x = 1: gate 2 − 1 > 0, magnitude 2·3 + 0.25; x = 0.5: gate 0 is not above 0
    assert sae.encode_dense(torch.tensor([[1.0], [0.5]])).flatten().tolist() == pytest.approx([6.25, 0.0])


@pytest.mark.parametrize(("kind", "k"), [("relu", None), ("topk", 3), ("jumprelu", None), ("gated", None)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_sparse_and_dense_agree_for_any_leading_shape(kind, k, shape):
    sae = sae_of(kind, k)
    acts = torch.randn(*shape, 6, generator=torch.Generator().manual_seed(1))
    latents, dense = sae.encode(acts), sae.encode_dense(acts)
    assert latents.batch_shape == shape
    assert_close(latents.to_dense(), dense)
    assert_close(latents.l0(), (dense != 0).float().sum(-1))
    assert_close(sae.decode(latents), sae.decode(dense))
    assert_close(sae(acts).recons, dense @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize(("kind", "k"), [("relu", None), ("topk", 3), ("jumprelu", None), ("gated", None)])
def test_a_subset_of_latents_is_those_columns(kind, k):
    sae, acts, some = sae_of(kind, k), torch.randn(4, 6), torch.tensor([7, 0, 19])
    assert_close(sae.latent_acts(acts, some), sae.encode_dense(acts)[:, some])


def test_topk_selects_only_where_one_of_the_latents_is_above_0(monkeypatch):
    """Of 60 rows, those on which latent 7 or 0 has a positive pre-activation are encoded; the rest are 0."""
    sae, some = sae_of("topk", 3), torch.tensor([7, 0])
    acts = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(2))
    dense = sae.encode_dense(acts)[..., some]
    above = (((acts - sae.b_dec) @ sae.W_enc + sae.b_enc)[..., some] > 0).any(-1)
    rows, real = [], sae._encode_rows
    monkeypatch.setattr(sae, "_encode_rows", lambda given: rows.append(len(given)) or real(given))
    assert_close(sae.latent_acts(acts, some), dense)
    assert rows == [int(above.sum())] and 10 < rows[0] < 50 and not dense[~above].any()
    none = torch.full((2, 6), -50.0) * sae.W_enc[:, 7].sign()
    assert sae.latent_acts(none, some[:1]).tolist() == [[0.0], [0.0]] and len(rows) == 1


def test_chunks_of_rows_do_not_matter(monkeypatch):
    sae, acts = sae_of("topk", 3), torch.randn(50, 6)
    whole = sae.encode(acts).to_dense()
    monkeypatch.setattr("saelens_lite.sae.autoencoder._PRE_ACT_BUDGET_BYTES", 7 * 20 * 4)
    assert_close(sae.encode(acts).to_dense(), whole)  # up to the rounding of a product of another shape


def test_without_gradients_selection_adds_the_bias_itself(monkeypatch):
    sae, biases = sae_of("topk", 3), []
    monkeypatch.setattr(
        "saelens_lite.kernels.dispatch.select_topk",
        lambda p, bias, k: biases.append(bias) or torch.topk(p + bias, k),
    )
    with torch.no_grad():
        sae.encode(torch.randn(4, 6))
    assert biases[0] is sae.b_enc


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_gradients_flow_through_encode_and_decode(kind):
    sae, acts = sae_of(kind, 3 if kind == "topk" else None), torch.randn(4, 6, requires_grad=True)
    sparse = torch.autograd.grad(sae(acts).recons.square().sum(), [acts, *sae.parameters()])
    dense = torch.autograd.grad(sae.decode(sae.encode_dense(acts)).square().sum(), [acts, *sae.parameters()])
    for s, d in zip(sparse, dense, strict=True):
        assert_close(s, d)


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_run_time_normalisation_is_undone(normalization):
    sae, acts = sae_of("relu", normalize_activations=normalization), 10 + 3 * torch.randn(4, 6)
    if normalization == "layer_norm":
        acts[0] *= 1e-5
        mean, std = acts.mean(-1, keepdim=True), acts.std(-1, keepdim=True)
        expected = sae.decode(sae.latent_acts((acts - mean) / (std + 1e-5))) * std + mean
    else:
        size = acts.norm(dim=-1, keepdim=True) / 6**0.5
        expected = sae.decode(sae.latent_acts(acts / size)) * size
    assert_close(sae(acts).recons, expected)
    assert_close(sae(acts).latents.to_dense(), sae.encode_dense(acts))


def test_a_row_of_zeros_without_a_norm_stays_zeros():
    sae = sae_of("relu", normalize_activations="constant_norm_rescale")
    out = sae(torch.zeros(2, 6))
    assert_close(out.recons, torch.zeros(2, 6))
    assert_close(out.latents.to_dense(), sae.latent_acts(torch.zeros(2, 6)))


def test_another_width_is_refused_with_the_way_out():
    sae = sae_of("relu", model_name="gpt2", hook_point="blocks.8.hook_resid_post")
    with pytest.raises(
        ValueError, match=r"acts\[..., d_model=6\], got \[32, 5\].*was trained on gpt2 at blocks.8.hook_resid"
    ):
        sae.encode(torch.randn(32, 5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "topk"}, "k belongs to kind='topk'"),
        ({"kind": "relu", "k": 3}, "k belongs to kind='topk'"),
        ({"kind": "topk", "k": 21}, "1 <= k <= d_sae=20"),
        ({"kind": "tokp", "k": 3}, "did you mean 'topk'"),
        ({"kind": "relu", "normalize_activations": "layernorm"}, "expected one of"),
        ({"kind": "relu", "dtype": "float33"}, "expected a float dtype of torch"),
    ],
)
def test_wrong_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SAEConfig(d_model=6, d_sae=20, **fields)


def test_latents_of_ragged_tokens_by_hand():
    latents = SparseLatents.from_dense(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]]))
    assert latents.values.tolist() == [2, 1, 3]
    assert latents.indices.tolist() == [1, 0, 2]
    assert latents.offsets.tolist() == [0, 1, 1, 3]
    assert latents.row_ids().tolist() == [0, 2, 2]
    assert latents.l0().tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="ragged"):
        latents.topk_view()


def test_the_topk_view_shares_memory():
    values, indices = torch.rand(4, 3), torch.randint(0, 9, (4, 3))
    latents = SparseLatents.from_topk(values, indices, 9)
    assert latents.topk_view()[0].data_ptr() == values.data_ptr()


def test_a_reconstruction_that_overflows_float16_says_so():
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=2, kind="relu", dtype="float16"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(4 * torch.eye(2))
    assert sae(torch.tensor([[16000.0, 1.0]])).recons.tolist() == [[64000.0, 4.0]]
    with pytest.raises(FloatingPointError, match="overflows float16, whose largest number is 65,504: load"):
        sae(torch.tensor([[1.0, 1.0], [20000.0, 1.0]]))
    assert sae.float()(torch.tensor([[20000.0, 1.0]])).recons.tolist() == [[80000.0, 4.0]]
