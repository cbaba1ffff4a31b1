"""Where work goes when a user says so, and when not."""

import pytest
import torch

from saelens_lite.device import best_device, chosen_device


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
