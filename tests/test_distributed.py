"""Which process this is, and that alone there is nothing to do; sums over several are tested in
tests/train."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite import distributed
from saelens_lite.distributed import own_device


def test_alone_there_is_nothing_to_reduce(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.arange(3.0)
    with distributed.joined(torch.device("cpu")):
        assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, None)
        assert distributed.sum_(tensor) is tensor and distributed.mean(tensor) is tensor
        assert distributed.from_first_(tensor) is tensor
    assert distributed.largest(7) == 7
    assert_close(distributed.gathered(tensor), tensor[None])


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    """5 processes on 4 GPUs: the last shares the first one's. A device with a number stays as it is."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "10")
    monkeypatch.setenv("RANK", "9")
    for rank, device in ((0, "cuda:0"), (3, "cuda:3"), (4, "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert own_device("cuda") == device
    assert (own_device("cuda:2"), own_device("cpu"), own_device("mps")) == ("cuda:2", "cpu", "mps")
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device("cuda") == "cuda:1"


def test_two_processes_on_one_gpu_are_refused_before_nccl_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ValueError, match="GPU for each of the 2 processes.*sees 1: start torchrun --nproc-per-node 1"
        ),
        distributed.joined(torch.device("cuda:0")),
    ):
        pass
