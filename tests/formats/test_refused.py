"""What a foreign file asks for and is not computed here is refused by its name, never dropped."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.errors import CheckpointError
from saelens_lite.sae.autoencoder import SparseAutoencoder


@pytest.fixture
def changed(golden, tmp_path):
    """changed("sparsify", "cfg.json", k=3): a copy of a golden folder with other settings in one file."""

    def copy(name, file=None, nested=None, **settings):
        folder = golden(name).folder
        into = tmp_path / folder.name
        shutil.copytree(folder, into)
        if file is not None:
            config = json.loads((into / file).read_text())
            (config if nested is None else config[nested]).update(settings)
            config = {key: value for key, value in config.items() if value is not ...}
            (into / file).write_text(json.dumps(config))
        return into

    return copy


@pytest.mark.parametrize(
    ("name", "file", "settings", "message"),
    [
        ("sparsify", "cfg.json", {"transcode": True}, "got a transcoder of 12 to 12: .*Transcoder.load"),
        ("sparsify", "cfg.json", {"skip_connection": True}, "skip_connection True expected transcode True"),
        ("sparsify", "cfg.json", {"activation": "groupmax"}, "'groupmax' is not supported .*GroupMax"),
        ("sparsify", "cfg.json", {"signed": True}, "signed True is not supported"),
        ("sparsify", "cfg.json", {"d_in": 13}, r"expected W_dec \[32, 13\] .*got \[32, 12\]"),
        ("sparsify", "cfg.json", {"num_latents": 0}, r"expected W_dec \[384, 12\]"),
        ("sparsify", "cfg.json", {"k": "4"}, "cfg.json: k expected int, got '4'"),
        ("llama_scope", "hyperparams.json", {"act_fn": "topk"}, "act_fn 'topk' is not supported"),
        ("llama_scope", "hyperparams.json", {"hook_point_out": "blocks.15.hook_mlp_out"}, "a transcoder"),
        (
            "llama_scope",
            "hyperparams.json",
            {"norm_activation": "batch-wise"},
            "'batch-wise' is not supported",
        ),
        ("llama_scope", "hyperparams.json", {"apply_decoder_bias_to_pre_encoder": True}, "pre_encoder True"),
        ("llama_scope", "hyperparams.json", {"dataset_average_activation_norm": ...}, "above 0 .*got None"),
        ("llama_scope", "hyperparams.json", {"jump_relu_threshold": ...}, "a number jump_relu_threshold"),
        ("llama_scope", "hyperparams.json", {"d_sae": 64}, r"expected W_dec \[64, 12\]"),
        ("llamascopium", "config.json", {"sae_type": "lorsa"}, "'lorsa' is not supported .*low-rank sparse"),
        ("llamascopium", "config.json", {"sae_type": "clt"}, "'clt' is not supported .*cross-layer"),
        ("llamascopium", "config.json", {"sae_type": "molt"}, "'molt' is not supported .*mixture of linear"),
        ("llamascopium", "config.json", {"sae_type": "crosscoder"}, "'crosscoder' is not .*several"),
        ("llamascopium", "config.json", {"sae_type": "plt"}, "'plt' is not supported .*no other is known"),
        ("llamascopium", "config.json", {"use_glu_encoder": True}, "use_glu_encoder True"),
        ("llamascopium", "config.json", {"expansion_factor": 8}, r"expected W_dec \[96, 12\]"),
        ("gemma_scope_2", "config.json", {"architecture": "top_k"}, "architecture 'top_k' is not supported"),
        ("gemma_scope_2", "config.json", {"hf_hook_point_in": "model.layers.3.mlp.input",
         "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output"},
         "only transcoders of an MLP"),
        ("gemma_scope_2", "config.json", {"type": "crosscoder"}, "crosscoder"),
        ("gemma_scope_2", "config.json", {"hf_hook_point_out": "model.layers.12.mlp.output"},
         "only transcoders of an MLP"),
    ],
)  # fmt: skip
def test_settings_without_counterpart_are_named(changed, name, file, settings, message):
    with pytest.raises((ValueError, CheckpointError), match=message) as refused:
        SparseAutoencoder.load(changed(name, file, **settings))
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dict_class": "IdentityDict"}, "got 'IdentityDict', which has no counterpart"),
        ({"k": 5}, "expected k as in config.json, 5, got 4"),
        ({"dict_size": 64}, r"expected W_dec \[64, 12\] .*got \[32, 12\]"),
        ({"dict_class": "GatedAutoEncoder"}, "expected a tensor gate_bias, got only b_dec, decoder.weight"),
    ],
)
def test_a_dictionary_that_contradicts_its_config_is_refused(changed, settings, message):
    folder = changed("dictionary_AutoEncoderTopK", "config.json", nested="trainer", **settings)
    with pytest.raises((ValueError, CheckpointError), match=message):
        SparseAutoencoder.load(folder)


def test_embeddings_of_gemma_scope_are_refused_by_name(golden, tmp_path):
    for name, message in (
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "an SAE of the token embeddings"),
    ):
        shutil.copytree(golden("gemma_scope").folder, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*: {message}"):
            SparseAutoencoder.load(tmp_path / name)


@pytest.mark.parametrize("config", [True, False])
def test_cross_layer_transcoders_of_circuit_tracer_are_refused_by_name(tmp_path, config):
    """W_dec_0 writes to both layers: float[n, 2, d]; W_dec_1 to its own alone."""
    for layer in range(2):
        bias = {f"b_enc_{layer}": torch.zeros(8), f"b_dec_{layer}": torch.zeros(4)}
        encoder = {f"W_enc_{layer}": torch.zeros(8, 4), **bias}
        save_file(encoder, tmp_path / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": torch.zeros(8, 2 - layer, 4)}, tmp_path / f"W_dec_{layer}.safetensors")
    if config:
        (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    with pytest.raises(ValueError, match="expected one SAE or transcoder, got circuit-tracer's cross-layer"):
        SparseAutoencoder.load(tmp_path)


def test_a_scaling_factor_is_dropped_where_it_is_one_and_refused_where_it_is_not(changed):
    folder = changed("gemma_scope")
    arrays = dict(np.load(folder / "params.npz"))
    np.savez(folder / "params.npz", **arrays, scaling_factor=np.ones(32, np.float32))
    assert SparseAutoencoder.load(folder).kind == "jumprelu"
    np.savez(folder / "params.npz", **arrays, scaling_factor=np.full(32, 1.001, np.float32))
    with pytest.raises(CheckpointError, match="expected a scaling_factor of ones"):
        SparseAutoencoder.load(folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"activation": "JumpReLU"}, "activation 'JumpReLU' is not supported"),
        ({"activation_state_dict": {"k": 4, "postact_fn": "Identity"}}, "postact_fn 'Identity'"),
        ({"activation_state_dict": {}}, "expected activation_state_dict to have a number k, got {}"),
        ({"bias_of_ours": torch.zeros(2)}, "bias_of_ours not known in this format"),
    ],
)
def test_an_activation_of_openai_without_counterpart_is_named(golden, tmp_path, state, message):
    torch.save(torch.load(golden("openai_topk").folder, weights_only=True) | state, tmp_path / "8.pt")
    with pytest.raises((ValueError, CheckpointError), match=message):
        SparseAutoencoder.load(tmp_path)


def test_qwen_scope_without_its_repositorys_name_says_what_is_missing(golden, tmp_path):
    shutil.copy(golden("qwen_scope").folder, tmp_path / "layer5.sae.pt")
    with pytest.raises(CheckpointError, match="say k in that name alone, so name the folder so"):
        SparseAutoencoder.load(tmp_path)


def test_several_files_in_a_folder_are_offered_by_name(golden, tmp_path):
    for layer in range(3):
        shutil.copy(golden("qwen_scope").folder, tmp_path / f"layer{layer}.sae.pt")
    with pytest.raises(CheckpointError, match="SAEs in it: layer0.sae.pt, layer1.sae.pt, layer2.sae.pt"):
        SparseAutoencoder.load(tmp_path)


def test_a_format_can_be_named_where_the_file_is_called_otherwise(golden, tmp_path):
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"
    folder.mkdir()
    shutil.copy(golden("qwen_scope").folder, folder / "mine.pt")
    with pytest.raises(CheckpointError, match="no complete SAE of any format"):
        SparseAutoencoder.load(folder)
    assert SparseAutoencoder.load(folder, format="qwen_scope").config.k == 4


def test_llama_scope_follows_its_origin_and_says_where_saelens_differs(golden, caplog):
    """A latent fires from h = θ / ‖column‖ on; the norms here are those before W_dec is divided by s_out."""
    sae = SparseAutoencoder.load(golden("llama_scope").folder)
    assert "SAELens leaves the norms out, and finds other latents" in caplog.text
    assert "SAELens" in sae.config.metadata["saelens_lite"]["notes"][0]
    column_norms = sae.W_dec.detach().norm(dim=1) * (12**0.5 / 16.5)
    torch.testing.assert_close(sae.threshold.detach(), 0.52734375 / column_norms)
    caplog.clear()
    SparseAutoencoder.load(golden("llama_scope_r1_distill").folder)
    assert "SAELens" not in caplog.text


def test_token_wise_rows_are_brought_to_norm_sqrt_d(changed, golden):
    folder = changed("llama_scope", "hyperparams.json", norm_activation="token-wise")
    sae = SparseAutoencoder.load(folder)
    assert sae.config.normalize_activations == "constant_norm_rescale"
    x = golden("llama_scope").rows[:5].double()
    tensors = {n: t.double() for n, t in load_file(folder / "checkpoints/final.safetensors").items()}
    size = x.norm(dim=-1, keepdim=True) / 12**0.5
    h = (x / size) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    h = h * (h * tensors["decoder.weight"].norm(dim=0) > 0.52734375)
    recons = (h @ tensors["decoder.weight"].T + tensors["decoder.bias"]) * size
    with torch.no_grad():
        torch.testing.assert_close(sae(x).recons.double(), recons, atol=1e-4, rtol=1e-4)


def test_a_batchwise_dictionary_without_threshold_is_refused(golden, tmp_path):
    folder = tmp_path / "trainer_0"
    shutil.copytree(golden("dictionary_BatchTopKSAE").folder, folder)
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    del tensors["threshold"]
    torch.save(tensors, folder / "ae.pt")
    with pytest.raises(CheckpointError, match="expected a threshold for BatchTopKSAE, got none: without it"):
        SparseAutoencoder.load(folder)


def test_a_threshold_that_was_never_set_is_said(golden, caplog):
    SparseAutoencoder.load(golden("dictionary_MatryoshkaBatchTopKSAE").folder)
    assert "its threshold was never set: every positive latent stays" in caplog.text
