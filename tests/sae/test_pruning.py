"""Leave-one-out scores by hand and by leaving one out; what a pruned view is and keeps."""

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.pruning import leave_one_out


def three_latents():
    """relu; d = (1, 0), (0, 1), (.6, .8), encoders the same but a tenth of the last."""
    sae = sl.SparseAutoencoder(SAEConfig(d_model=2, d_sae=3, kind="relu"))
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_((rows * torch.tensor([[1.0], [1.0], [0.1]])).T)
    return sae


X = torch.tensor([[3.0, 4.0]])


def test_a_latent_that_others_make_up_for_is_dropped():
    """z = (3, 4, .5), x̂ = (3.3, 4.4), x − x̂ = (−.3, −.4): scores −.3 + 3, −.4 + 4, −.5 + .5."""
    sae = three_latents()
    latents = sae.encode(X)
    assert_close(latents.to_dense(), torch.tensor([[3.0, 4.0, 0.5]]))
    assert_close(
        leave_one_out(X, latents, sae.W_dec, sae.b_dec), torch.tensor([2.7, 3.6, 0.0]), atol=1e-6, rtol=0
    )
    view = sae.pruned(0.1)
    for tau, codes, recons in ((0.1, [3.0, 4.0, 0.0], [3.0, 4.0]), (3.0, [0.0, 4.0, 0.0], [0.0, 4.0])):
        view = sae.pruned(tau)
        assert_close(view.encode(X).to_dense(), torch.tensor([codes]))
        assert_close(view.encode_dense(X), torch.tensor([codes]))
        assert_close(view.latent_acts(X, torch.tensor([2, 1])), torch.tensor([[codes[2], codes[1]]]))
        assert_close(view(X).recons, torch.tensor([recons]))
    assert_close(sae.encode(X).to_dense(), torch.tensor([[3.0, 4.0, 0.5]]))  # the SAE itself prunes nothing


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_scores_tell_what_leaving_a_latent_out_costs(kind):
    """‖x − x̂ + z d‖² − ‖x − x̂‖² = z ‖d‖ (2 s − z ‖d‖), float64, rows of any norm and an input scale."""
    gen = torch.Generator().manual_seed(0)
    config = SAEConfig(d_model=7, d_sae=24, kind=kind, k=5 if kind == "topk" else None, dtype="float64",
                       normalize_activations="layer_norm")  # fmt: skip
    sae = sl.SparseAutoencoder(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    x, _, _ = sae.normalize(torch.randn(9, 7, generator=gen, dtype=torch.float64))
    latents = sae.encode_normalized(x)
    scores = leave_one_out(x, latents, sae.W_dec, sae.b_dec)
    error, rows = x - sae.decode(latents), sae.W_dec[latents.indices]
    without = error[latents.row_ids()] + latents.values[:, None] * rows
    costs = without.square().sum(1) - error.square().sum(1)[latents.row_ids()]
    reach = latents.values * rows.norm(dim=1)
    assert_close(reach * (2 * scores - reach), costs, rtol=1e-9, atol=1e-9)


def test_the_choice_has_no_gradient_and_values_have_theirs():
    """d recons / d W_dec of latent 0 is z0 = 3 on each dimension; the dropped latent 2 has none."""
    view = three_latents().pruned(0.1)
    view(X).recons.sum().backward()
    assert_close(view.W_dec.grad, torch.tensor([[3.0, 3.0], [4.0, 4.0], [0.0, 0.0]]))


def test_a_saved_view_prunes_when_it_is_opened_again(tmp_path):
    three_latents().pruned(0.1).save(tmp_path / "sae")
    opened = sl.SparseAutoencoder.load(tmp_path / "sae")
    assert opened.prune_above == opened.config.metadata["saelens_lite"]["prune_above"] == 0.1
    assert_close(opened.encode(X).to_dense(), torch.tensor([[3.0, 4.0, 0.0]]))
    assert opened.pruned(None).prune_above is None


@pytest.mark.parametrize("tau", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_is_refused(tau):
    with pytest.raises(ValueError, match="pruned expected a finite tau, got (nan|inf); None prunes nothing"):
        three_latents().pruned(tau)


def test_pairs_of_value_zero_stay_pairs():
    """TopK keeps k pairs a token, also where ReLU or pruning made them 0: l0 counts what is left."""
    latents = SparseLatents.from_topk(torch.tensor([[2.0, 0.0]]), torch.tensor([[0, 2]]), 3)
    sae = three_latents()
    scores = leave_one_out(torch.tensor([[2.0, 1.0]]), latents, sae.W_dec, sae.b_dec)
    assert_close(scores, torch.tensor([2.0, 0.8]))  # x − x̂ = (0, 1): 0 + 2; .8 + 0
    view = sl.SparseAutoencoder(SAEConfig(d_model=2, d_sae=3, kind="topk", k=2))
    with torch.no_grad():
        view.W_dec.copy_(sae.W_dec)
        view.W_enc.copy_(sae.W_enc)
    # the two largest of z = (3, 4, .5) are right: nothing to drop; at 3 the first goes
    assert view.pruned(0.1).encode(X).l0().tolist() == [2.0]
    pruned = view.pruned(3.5).encode(X)
    assert pruned.k == 2 and pruned.l0().tolist() == [1.0]
