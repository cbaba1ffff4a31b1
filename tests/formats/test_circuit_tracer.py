"""circuit-tracer's sets: keys and shapes, and a forward written from them."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from saelens_lite.cli.commands import main
from saelens_lite.errors import CheckpointError
from saelens_lite.formats import circuit_tracer
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.transcoder import Transcoder

D, N, K = 6, 16, 3


def of_block(block, kind="jumprelu", skip=True, d_sae=N, writes="hook_mlp_out", model="tiny"):
    target = Target(d_model=D, skip=skip, hook_point=f"blocks.{block}.{writes}")
    transcoder = Transcoder(SAEConfig(
        d_model=D, d_sae=d_sae, kind=kind, k=K if kind == "topk" else None, apply_b_dec_to_input=False,
        hook_point=f"blocks.{block}.mlp.hook_in", model_name=model, target=target,
    ))  # fmt: skip
    generator = torch.Generator().manual_seed(block)
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return transcoder


def write(transcoders, folder):
    return circuit_tracer.write([(one.config, one.state_dict()) for one in transcoders], folder)


def forward(tensors, config, x):
    """From the keys of the format alone, in float64."""
    of = {name: tensor.double() for name, tensor in tensors.items()}
    pre = x.double() @ of["W_enc"].T + of["b_enc"]
    if config.get("activation") == "topk":
        values, at = pre.topk(config["k"])
        latents = torch.zeros_like(pre).scatter(-1, at, values)
    elif config.get("activation") == "relu":
        latents = pre.relu()
    else:
        latents = pre * (pre > of["activation_function.threshold"])
    recons = latents @ of["W_dec"] + of["b_dec"]
    return recons + x.double() @ of["W_skip"].T if "W_skip" in of else recons


def rows_of(transcoder):
    """Rows of usual size, of 0 and of about 1e4, away from ties of the threshold."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(60, D, generator=generator)
    x[-1], x[-2] = 0, 1e4 * x[-2]
    with torch.no_grad():
        pre = transcoder.pre_acts(x)
        if transcoder.kind == "topk":  # theirs keeps the k largest below zero, too
            return x[(pre.topk(K).values > 0).all(-1)]
        if transcoder.kind == "relu":
            return x
        kept = (pre - transcoder.threshold.clamp_min(0)).abs().amin(-1) > 1e-3
    assert kept[-2:].all()
    return x[kept]


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_the_command_writes_every_layer(tmp_path, capsys, kind, skip):
    transcoders = [of_block(block, kind, skip) for block in range(3)]
    for block in (2, 0, 1):
        transcoders[block].save(tmp_path / f"grid/layer{block}")
    out = tmp_path / "set"
    assert main(["convert", str(tmp_path / "grid"), str(out), "--to", "circuit-tracer"]) == 0
    assert f"3 transcoders, {kind}, d_model 6, 16 latents each, as circuit-tracer" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == [
        "config.yaml", "layer_0.safetensors", "layer_1.safetensors", "layer_2.safetensors",
    ]  # fmt: skip
    config = yaml.safe_load((out / "config.yaml").read_text())
    activation = {"relu": {"activation": "relu"}, "topk": {"activation": "topk", "k": K}, "jumprelu": {}}
    assert config == {
        "model_name": "tiny", "model_kind": "transcoder_set", "scan": None,
        "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out", **activation[kind],
    }  # fmt: skip
    shapes = {"W_enc": (N, D), "W_dec": (N, D), "b_enc": (N,), "b_dec": (D,)}
    shapes |= {"activation_function.threshold": (N,)} if kind == "jumprelu" else {}
    shapes |= {"W_skip": (D, D)} if skip else {}
    for block, transcoder in enumerate(transcoders):
        tensors = load_file(out / f"layer_{block}.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
        x = rows_of(transcoder)
        expected = forward(tensors, config, x)
        with torch.no_grad():
            off = (transcoder(x).recons.double() - expected).norm(dim=-1)
        assert (off <= 1e-5 * expected.norm(dim=-1)).all()
        again = Transcoder.load(out / f"layer_{block}.safetensors")
        assert (again.target, again.config.hook_point) == (transcoder.target, transcoder.config.hook_point)
        assert (again.kind, again.config.model_name) == (kind, "tiny")
        if kind == "jumprelu":
            assert (transcoder.threshold < 0).any() and (again.threshold >= 0).all()
        for name, parameter in transcoder.named_parameters():
            parameter = parameter.clamp_min(0) if name == "threshold" else parameter
            assert torch.equal(again.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("transcoders", "message"),
    [
        ([of_block(0), of_block(2)], "for every block from 0, got none of block 1: it replaces"),
        ([of_block(0), of_block(1), of_block(1)], "one transcoder for each block, got two of block 1"),
        ([of_block(0), of_block(1, kind="relu")], "one kind in all blocks, got 'jumprelu' in block 0"),
        ([of_block(0), of_block(1, d_sae=17)], "one d_sae in all blocks, got 16 in block 0 and 17"),
        ([of_block(0), of_block(1, model="b")], "one model_name in all blocks, got 'tiny' .* 'b' in block 1"),
        ([of_block(0, writes="hook_resid_post"), of_block(1)], "one feature_output_hook in all blocks"),
    ],
)
def test_a_set_that_is_none_is_refused(tmp_path, transcoders, message):
    with pytest.raises(ValueError, match=message):
        write(transcoders, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_transcoder_is_refused(tmp_path, capsys):
    SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="relu")).save(tmp_path / "saes/a")
    arguments = ["convert", str(tmp_path / "saes"), str(tmp_path / "set"), "--to", "circuit-tracer"]
    assert main(arguments) == 2
    assert "expected a transcoder, got an SAE of d_model=6" in capsys.readouterr().err
    (tmp_path / "saes/a/cfg.json").unlink()
    assert main(arguments) == 2
    assert "expected a folder with the folders of transcoders in it" in capsys.readouterr().err


def test_a_set_is_opened_by_the_layer(tmp_path):
    write([of_block(0)], tmp_path / "set")
    with pytest.raises(ValueError, match="a set of circuit-tracer's transcoders: pass one, such as folder="):
        Transcoder.load(tmp_path / "set")
    assert Transcoder.load(tmp_path / "set", "layer_0.safetensors").d_sae == N
    file = tmp_path / "set" / "config.yaml"
    file.write_text("activation: gelu")
    with pytest.raises(ValueError, match="activation expected relu, topk or none, got 'gelu'"):
        Transcoder.load(tmp_path / "set/layer_0.safetensors")
    file.write_text("a: [")
    with pytest.raises(CheckpointError, match="config.yaml: expected YAML"):
        Transcoder.load(tmp_path / "set/layer_0.safetensors")
    file.unlink()
    opened = Transcoder.load(tmp_path / "set/layer_0.safetensors")
    assert (opened.kind, opened.config.hook_point) == ("jumprelu", "blocks.0.mlp.hook_in")
    tensors = load_file(tmp_path / "set/layer_0.safetensors")
    save_file(tensors | {"W_more": torch.zeros(2)}, tmp_path / "set/layer_0.safetensors")
    with pytest.raises(CheckpointError, match="W_more not known"):
        Transcoder.load(tmp_path / "set/layer_0.safetensors")
