"""A transcoder is scored where it writes: against the target's rows, and in the MLP's place."""

import json

import pytest
import torch
from torch import nn

import saelens_lite as sl
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.cli.commands import main
from saelens_lite.lm.losses import token_losses
from tests.lm.test_transcoder_splice import READS, WRITES, transcoder_of

from ..conftest import TEXTS


@pytest.fixture
def model(gpt2):
    for parameter in gpt2.parameters():  # the random model hardly uses its parts
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return gpt2


@pytest.fixture
def both(model, byte_tokenizer, tmp_path):
    size = {"max_tokens": 400, "context_length": 16, "dtype": "float32", "progress": False}
    return sl.harvest_activations(
        model, TEXTS, [READS, WRITES], tmp_path / "s", tokenizer=byte_tokenizer, **size
    )


def test_scores_are_of_the_target_beside_an_sae_of_it(model, both):
    """fvu by hand; the loss with two plain hooks, on the tokens that have rows."""
    transcoder = transcoder_of(32)
    config = sl.SAEConfig(d_model=32, d_sae=64, kind="relu", hook_point=WRITES)
    sae = sl.SparseAutoencoder(config)
    with torch.no_grad():  # x = ReLU(x) − ReLU(−x)
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    found = evaluate_sae(transcoder, both, model, sae, held_out=False, max_tokens=None)
    x, y = (both.gather(torch.arange(both.n_rows), point).double() for point in (READS, WRITES))
    with torch.no_grad():
        error = (transcoder(x.float()).recons.double() - y).square().sum()
    row = found.row("trained")
    assert found.hook_point == WRITES and row.encoder_decoder_cosine is None
    assert row.fvu == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-4)
    other = found.row("baseline")
    assert other.fvu < 1e-9 and other.delta_ce == pytest.approx(0, abs=1e-5)

    seen, kept = [], []
    for shard in range(both.n_shards):
        tokens = both.tokens(shard)
        for ids, keep in zip(tokens.input_ids.long(), tokens.kept.bool(), strict=True):
            block = model.transformer.h[1]

            def replace(module, args, output, keep=keep):
                return torch.where(keep[None, :, None], transcoder(seen[-1]).recons, output)

            handles = [
                block.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
                block.mlp.register_forward_hook(replace),
            ]
            with torch.no_grad():
                kept.append(token_losses(model, ids[None])[0][keep[1:]])
            for handle in handles:
                handle.remove()
    assert row.ce == pytest.approx(torch.cat(kept).mean().item(), rel=1e-4)


def test_a_store_without_the_target_is_refused(model, both, tmp_path, byte_tokenizer):
    only = sl.harvest_activations(
        model, TEXTS, [READS], tmp_path / "only", tokenizer=byte_tokenizer, max_tokens=100,
        context_length=16, progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"a transcoder, expected a store with rows of width 32 at {WRITES}"):
        evaluate_sae(transcoder_of(32), only)


def test_the_commands_open_transcoders(model, both, tmp_path, capsys):
    """evaluate and analyze: latents are those of the input's rows, and the page is written."""
    folder, store = str(transcoder_of(32).save(tmp_path / "t")), str(both.path)
    numbers = str(tmp_path / "e.json")
    assert main(["evaluate", "--sae", folder, "--store", store, "--no-held-out", "--output", numbers]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["hook_point"] == WRITES
    page = str(tmp_path / "page.html")
    assert main(["analyze", "--sae", folder, "--store", store, "--output", page]) == 0, (
        capsys.readouterr().err
    )
    index = sl.FeatureIndex.open(tmp_path / "page.index")
    rows = both.gather(torch.arange(both.n_rows), READS)
    with torch.no_grad():
        rate = (transcoder_of(32).encode_dense(rows) > 0).double().mean(0)
    torch.testing.assert_close(index.density.density.double(), rate, rtol=1e-6, atol=1e-9)
