"""Controls have the dose of what they control, are many and different; what chose a latent may not test
it."""

import builtins
from functools import partial

import pytest
import torch
from torch import nn

from saelens_lite.analyze.edits.controls import (
    diff_mean,
    direction_control,
    matched_latents,
    probe_direction,
    random_directions,
)
from saelens_lite.analyze.stats.document_split import Split, select_latents
from saelens_lite.hashing import is_held_out
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

from ..conftest import make_sae


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def sae_of(d_sae: int = 300, d_model: int = 8) -> SparseAutoencoder:
    """Decoder rows of norms 1 to 2; the identity where there is room, encoding what it decodes."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind="relu"))
    directions = nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=-1)
    sae.W_dec.copy_(directions * (1 + torch.rand(d_sae, 1, generator=generator)))
    sae.W_enc.copy_(directions.T)
    return sae


RATES = torch.logspace(-4, -1, 300)


def test_matched_latents_are_the_nearest_in_rate_and_norm():
    """Equal norms and rates in even log steps: the 100 nearest to the middle one are the 50 on each side."""
    sae = sae_of()
    sae.W_dec.copy_(nn.functional.normalize(sae.W_dec, dim=-1))
    controls = matched_latents(sae, 150, RATES.double())
    assert controls.latents.shape == (100, 1) and controls.directions.shape == (100, 1, 8)
    assert sorted(controls.latents[:, 0].tolist()) == [i for i in range(100, 201) if i != 150]
    assert controls.rate_ratio == pytest.approx(10 ** (3 * 50 / 299), rel=1e-6)
    sae.W_dec[100:125] *= 100  # no longer of about the same norm
    assert set(matched_latents(sae, 150, RATES).latents[:, 0].tolist()).isdisjoint(range(100, 125))


def test_every_control_is_as_long_as_the_row_it_stands_for():
    sae, latents = sae_of(), [3, 70, 200]
    lengths = sae.W_dec[latents].norm(dim=-1)
    for controls in (
        matched_latents(sae, latents, RATES),
        random_directions(sae, latents),
        direction_control(sae, latents, torch.arange(8.0)),
    ):
        torch.testing.assert_close(controls.directions.norm(dim=-1), lengths.expand(len(controls), 3))
    assert len(controls) == 1


def test_draws_of_several_latents_differ_and_leave_the_latents_out():
    sae, latents = sae_of(), [149, 150, 151]
    drawn = matched_latents(sae, latents, RATES, n_draws=150, seed=1).latents
    sets = {tuple(sorted(draw)) for draw in drawn.tolist()}
    assert len(sets) == 150 and all(len(set(draw)) == 3 for draw in sets)
    assert not set(latents) & set(drawn.flatten().tolist())
    torch.testing.assert_close(drawn, matched_latents(sae, latents, RATES, n_draws=150, seed=1).latents)
    assert not torch.equal(drawn, matched_latents(sae, latents, RATES, n_draws=150, seed=2).latents)


def test_dead_latents_control_nothing():
    sae, rates = sae_of(), RATES.clone()
    rates[100:] = 0
    with pytest.raises(ValueError, match="at least 100 other latents that fire, got 99.*smaller n_draws"):
        matched_latents(sae, 0, rates)
    assert matched_latents(sae, 0, rates, n_draws=99).latents.max() == 99
    with pytest.raises(ValueError, match="got one that never did"):
        matched_latents(sae, 100, rates, n_draws=9)


def test_random_directions_are_even():
    """The mean of 4,000 unit vectors in 8 dimensions has length about √(1 / 4,000)."""
    sae = sae_of()
    drawn = nn.functional.normalize(random_directions(sae, 5, n_draws=4000).directions[:, 0], dim=-1)
    assert drawn.mean(0).norm() < 3 / 4000**0.5
    torch.testing.assert_close(drawn.T @ drawn / 4000, torch.eye(8) / 8, rtol=0, atol=0.02)


def labelled(n: int = 400):
    """Rows that differ by label along axis 0, with a wide spread along axis 1 that says nothing."""
    generator = torch.Generator().manual_seed(0)
    labels, documents = torch.rand(n, generator=generator) < 0.5, torch.arange(n) // 2
    acts = torch.randn(n, 8, generator=generator)
    acts[:, 0] += 4 * labels - 2
    acts[:, 1] *= 20
    return acts, labels, documents


def test_directions_from_labels_point_where_the_labels_differ():
    acts, labels, documents = labelled()
    probe = probe_direction(acts, labels, documents)
    assert nn.functional.normalize(probe, dim=0)[0] > 0.95
    chooses = ~Split().tests(documents)
    by_hand = acts[chooses & labels].mean(0) - acts[chooses & ~labels].mean(0)
    torch.testing.assert_close(diff_mean(acts, labels, documents), by_hand)
    torch.testing.assert_close(diff_mean(acts, labels), acts[labels].mean(0) - acts[~labels].mean(0))


def test_a_probe_without_scikit_learn_names_the_extra(monkeypatch):
    acts, labels, _ = labelled(20)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"saelens_lite\[probes\]"):
        probe_direction(acts, labels)


# The split ----------------------------------------------------------------------------------------


def axes_sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_model=8, d_sae=8, kind="relu"))
    sae.W_enc.copy_(torch.eye(8)), sae.W_dec.copy_(torch.eye(8))
    return sae


@pytest.mark.parametrize("by", ["separation", "welch_t"])
def test_the_latent_that_tells_labels_apart_is_chosen(by):
    acts, labels, documents = labelled()
    found = select_latents(axes_sae(), acts, labels, documents, n=2, by=by)
    z = acts.clamp_min(0).double()
    chooses = ~Split().tests(documents)
    one, zero = z[chooses & labels], z[chooses & ~labels]
    if by == "separation":
        expected = (one > 0).double().mean(0) - (zero > 0).double().mean(0)
    else:
        expected = (one.mean(0) - zero.mean(0)) / (one.var(0) / len(one) + zero.var(0) / len(zero)).sqrt()
    assert found.latents[0] == 0 and found.n_items == chooses.sum()
    torch.testing.assert_close(found.statistic, expected[found.latents])
    allowed = torch.arange(8) > 0
    assert select_latents(axes_sae(), acts, labels, documents, by=by, allowed=allowed).latents[0] != 0


def test_latents_that_write_are_chosen_among_those_that_read():
    """Separations of eight latents by hand, and output scores of which the upper quarter is two of seven."""
    documents = torch.arange(400)
    labels = documents % 2 == 0
    acts = torch.full((400, 8), -1.0)
    shares = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0, 0.3]
    for latent, share in enumerate(shares):  # fires on that share of label 1, and on none of label 0
        acts[labels, latent] = torch.where(torch.arange(200) < 200 * share, 1.0, -1.0)
    acts[labels] = acts[labels][torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    scores = torch.tensor([0.0, 0.1, 0.6, 0.2, 0.7, torch.nan, 0.9, 0.3])
    select = partial(select_latents, axes_sae(), acts, labels, documents, output_score=scores)
    # Scored in order: 0, .1, .2, .3, .6, .7, .9; the 75 % quantile lies half between .6 and .7.
    both = select(by="both", n=1)
    assert both.latents.tolist() == [4]
    assert select(by="both", output_quantile=0.6, n=2).latents.tolist() == [2, 4]
    assert both.statistic.item() == select_latents(axes_sae(), acts, labels, documents, n=5).statistic[4]
    by_score = select(by="output_score", n=6)  # 6 reads nothing, 5 has no score
    assert by_score.latents.tolist() == [4, 2, 7, 3, 1, 0]
    torch.testing.assert_close(by_score.statistic, scores[by_score.latents].double())
    with pytest.raises(ValueError, match="n=2 latents were asked for, got 1 that may be chosen"):
        select(by="both", n=2)


def test_the_test_side_has_no_say():
    acts, labels, documents = labelled()
    tests = Split().tests(documents)
    found = select_latents(axes_sae(), acts, labels, documents, n=8)
    labels[tests] = ~labels[tests]
    acts[tests] = 7.0
    again = select_latents(axes_sae(), acts, labels, documents, n=8)
    assert torch.equal(found.latents, again.latents) and torch.equal(found.statistic, again.statistic)


def test_documents_that_chose_are_refused():
    acts, labels, documents = labelled()
    found = select_latents(axes_sae(), acts, labels, documents)
    tests = found.split.tests(documents)
    found.check_unseen(documents[tests])
    with pytest.raises(ValueError, match="1 of 3 items from the selecting side, the first of document"):
        found.check_unseen(torch.cat([documents[tests][:2], documents[~tests][:1]]))


def test_names_are_documents_too_and_the_split_holds_what_training_held_out():
    names = [f"person {i}" for i in range(2000)]
    tests = Split().tests(names)
    assert abs(tests.double().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5
    assert torch.equal(tests[[5, 3]], Split().tests([names[5], names[3]]))
    assert not torch.equal(tests, Split(seed=1).tests(names))
    documents = torch.arange(2000)
    assert Split().tests(documents)[is_held_out(documents)].all()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda a, y, d: select_latents(axes_sae(), a, y, d[:3]), "each of 20 items, got 3"),
        (lambda a, y, d: select_latents(axes_sae(), a, y[:3], d), "a label each"),
        (lambda a, y, d: select_latents(axes_sae(), a, y | True, d), "both labels"),
        (lambda a, y, d: select_latents(axes_sae(), a, y, d, n=9), "n=9 latents were asked for, got 8"),
        (lambda a, y, d: select_latents(axes_sae(), a, y, d, by="seperation"), "did you mean 'separation'"),
        (
            lambda a, y, d: select_latents(axes_sae(), a, y, d, by="both"),
            "float\\[d_sae\\], as an index has it",
        ),
        (
            lambda a, y, d: select_latents(axes_sae(), a, y, d, output_score=torch.ones(8)),
            "None with by='separation', got one",
        ),
        (
            lambda a, y, d: select_latents(axes_sae(), a, y, d, by="both", output_score=torch.ones(7)),
            "each of d_sae=8 latents, got \\[7\\]",
        ),
        (
            lambda a, y, d: select_latents(
                axes_sae(), a, y, d, by="both", output_score=torch.ones(8), output_quantile=1.0
            ),
            "at least 0 below 1, got 1.0",
        ),
        (lambda a, y, d: Split(test_fraction=1.0), "between 0 and 1"),
        (lambda a, y, d: matched_latents(axes_sae(), 0, torch.ones(7)), "d_sae=8"),
        (lambda a, y, d: direction_control(axes_sae(), 0, torch.ones(7)), "d_model=8"),
        (lambda a, y, d: direction_control(axes_sae(), 0, torch.zeros(8)), "with a length"),
        (lambda a, y, d: matched_latents(axes_sae(), [0, 1, 2], torch.ones(8), n_draws=5), None),
    ],
)
def test_bad_arguments_are_named(call, match):
    if match is None:  # five others, of which there are ten sets of three: enough
        call(*labelled(20))
        return
    with pytest.raises(ValueError, match=match):
        call(*labelled(20))


def test_draws_of_many_latents_have_none_twice_and_none_of_the_chosen():
    """20 of 48 latents at a time: what one has taken, the next leaves for its next nearest."""
    sae, chosen = make_sae(), list(range(20))
    controls = matched_latents(sae, chosen, torch.linspace(0.01, 0.2, 48), n_draws=25)
    assert controls.latents.shape == (25, 20)
    assert all(len(set(draw)) == 20 and min(draw) >= 20 for draw in controls.latents.tolist())
    assert len({tuple(sorted(draw)) for draw in controls.latents.tolist()}) == 25
    with pytest.raises(ValueError, match="expected at least 26 other latents that fire, got 23"):
        matched_latents(sae, list(range(25)), torch.linspace(0.01, 0.2, 48), n_draws=10)
