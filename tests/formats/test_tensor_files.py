"""Files of others run no code, take no memory beyond their size, and say what is wrong with them."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.tensor_files import read_tensors
from saelens_lite.sae.autoencoder import SparseAutoencoder


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, folder) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_malicious_pickle_in_a_formats_place_is_refused_and_does_not_run(golden, golden_name, tmp_path):
    """In the place of each format's weights, whatever their suffix, and as an array in a .npz."""
    case = golden(golden_name)
    ran = tmp_path / "ran"
    bad = {"W_enc": torch.zeros(2, 2), "encoder.weight": torch.zeros(2, 2), "bad": Malicious(ran)}
    folder = case.folder if case.folder.is_dir() else case.folder.parent
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".pt", ".pth", ".npz", ".safetensors"):
            continue
        before = file.read_bytes()
        try:
            if file.suffix == ".npz":
                arrays = dict(np.load(file)) | {"bad": np.array([Malicious(ran)], dtype=object)}
                np.savez(file, **arrays)
            else:
                torch.save(bad, file)
            with pytest.raises(CheckpointError, match="expected"):
                SparseAutoencoder.load(case.folder)
        finally:
            file.write_bytes(before)
    assert not ran.exists()
    Malicious(ran).__reduce__()[0](str(ran))  # it would have run
    assert ran.exists()


def test_a_pickle_of_objects_is_refused_with_the_way_out(tmp_path):
    torch.save({"W_enc": torch.zeros(2, 2), "bad": Malicious(tmp_path / "ran")}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match=r"(?s)got Python objects .*mkdir.*any code.*save its tensors"):
        read_tensors(tmp_path / "ae.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="got Python objects"):
        read_tensors(tmp_path / "whole.pt")
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([None], dtype=object))
    with pytest.raises(CheckpointError, match="W_enc.npy expected numbers, got Python objects"):
        read_tensors(tmp_path / "params.npz")


def test_tensors_numbers_and_words_are_read(tmp_path):
    saved = {"W": torch.arange(6.0).reshape(2, 3), "k": 3, "activation": "TopK", "state": {"k": 4}}
    torch.save(saved, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert torch.equal(found.pop("W"), saved.pop("W")) and found == saved
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000.0, dtype=np.float32))
    assert torch.equal(read_tensors(tmp_path / "a.npz")["x"], torch.arange(1000.0))
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert torch.equal(read_tensors(tmp_path / "f.npz")["x"], torch.arange(6.0).double().reshape(2, 3))


def test_a_view_that_repeats_its_numbers_is_refused_before_memory_is_taken(tmp_path):
    torch.save({"W_enc": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match="tensors of 4,000,000,000,000; it is damaged"):
        read_tensors(tmp_path / "ae.pt")


def test_a_compressed_file_that_would_fill_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", x=np.zeros(10**6, np.float32))
    with pytest.raises(CheckpointError, match="got tensors of 4,000,128; it is damaged, or made to fill"):
        read_tensors(tmp_path / "params.npz")


def test_a_header_that_claims_more_than_the_archive_has_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(CheckpointError, match="got tensors of 4,000,000,000,000,000"):
        read_tensors(tmp_path / "params.npz")


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_a_short_file_is_named(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    torch.save({"x": torch.zeros(1000)}, file) if suffix == ".pt" else np.savez(
        tmp_path / "a.npz", x=np.zeros(1000)
    )
    file.write_bytes((file.read_bytes() if file.exists() else b"x" * 100)[:-60])
    with pytest.raises(CheckpointError, match=f"a{suffix}: expected a complete .*copy it again"):
        read_tensors(file)


def test_a_file_older_than_torch_1_6_is_refused(tmp_path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match="older than torch 1.6; copy it again, or load and save it once"
    ):
        read_tensors(tmp_path / "a.pt")
