"""Random numbers of a step: what they depend on and what they do not."""

import torch

from saelens_lite.train.random_streams import generator, row_noise


def test_noise_of_a_row_depends_on_seed_step_and_place_in_the_batch_alone():
    whole = row_noise(torch.empty(600, 5), 0, seed=3, step=8)
    parts = [row_noise(torch.empty(150, 5), first, seed=3, step=8) for first in (0, 150, 300, 450)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(row_noise(torch.empty(600, 5, dtype=torch.float64), 0, seed=3, step=8), whole.double())
    for seed, step in ((4, 8), (3, 9)):
        assert not (row_noise(torch.empty(600, 5), 0, seed=seed, step=step) == whole).any()


def test_noise_is_standard_normal_and_rows_differ():
    noise = row_noise(torch.empty(5000, 20), 0, seed=0, step=0)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert len(noise.unique(dim=0)) == 5000


def test_generators_of_other_keys_differ():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    assert (
        len(
            {
                int(torch.randint(2**62, (), generator=generator(seed, *key)))
                for seed in (0, 1)
                for key in keys
            }
        )
        == 12
    )
