"""Where work goes when a user says so, and when not."""

import pytest
import torch

from saelens_lite.device import best_device, chosen_device, in_float64


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert chosen_device(None) == best_device() == chosen_device("cpu") == "cpu"
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(
            ValueError, match=f"device {name} expected one that torch .* sees here, it sees cpu"
        ):
            chosen_device(name)
    with pytest.raises(ValueError, match="expected cuda, mps or cpu, got 'gpu'"):
        chosen_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (
        chosen_device(None) == "cuda"
        and chosen_device("cuda:1") == "cuda:1"
        and chosen_device("cpu") == "cpu"
    )


def test_what_a_device_has_not_is_computed_on_the_cpu():
    """mps has no float64; there a tensor that refuses it, as torch's would."""

    class OnMps:
        device = torch.device("mps")

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self):
            return torch.tensor([0.5])

    assert in_float64(OnMps()).dtype == in_float64(torch.tensor([0.5])).dtype == torch.float64
