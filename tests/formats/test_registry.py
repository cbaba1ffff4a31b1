"""The table of releases: what it marks, what follows from names, and what a name fetches and opens."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from saelens_lite.cli.commands import main
from saelens_lite.errors import CheckpointError
from saelens_lite.formats.recognise import NAMES
from saelens_lite.sae import registry
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.registry import releases
from saelens_lite.sae.transcoder import Transcoder

DATA = Path(registry.__file__).with_name("releases.json.xz")


def test_all_releases_are_there_each_with_its_mark():
    assert len(releases()) == 170 and sum(len(release.saes) for release in releases().values()) == 13_857
    assert Counter(release.status for release in releases().values()) == {
        "opens": 166,
        "refused": 4,
    }
    for release in releases().values():
        assert release.status == "opens" or release.why
        assert release.status != "opens" or release.format in NAMES
    assert DATA.stat().st_size <= 200_000


@pytest.mark.parametrize(
    ("release", "sae_id", "hook_point", "width"),
    [
        ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", 16_384),
        ("gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", "hook_embed", 4096),
        ("gemma-scope-9b-pt-att-canonical", "layer_41/width_131k/canonical", "blocks.41.attn.hook_z", 2**17),
        ("gemma-scope-2-4b-it-mlp-all", "layer_0_width_262k_l0_big", "blocks.0.hook_mlp_out", 262_144),
        ("gpt2-small-res-jb-feature-splitting", "blocks.8.hook_resid_pre_768", "blocks.8.hook_resid_pre",
         768),
        ("gpt2-small-hook-z-kk", "blocks.3.hook_z", "blocks.3.attn.hook_z", None),
        ("llama_scope_lxm_8x", "l15m_8x", "blocks.15.hook_mlp_out", 32_768),
        ("llama_scope_r1_distill", "l0r_800m_slimpajama", "blocks.0.hook_resid_post", None),
        ("qwen-scope-3.5-27b-w80k-l50", "layer63", "blocks.63.hook_resid_post", 81_920),
        ("sae_bench_gemma-2-2b_topk_width-2pow14_date-1109", "blocks.12.hook_resid_post__trainer_0",
         "blocks.12.hook_resid_post", 16_384),
        ("gpt2-small-resid-mid-v5-128k", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_mid", 131_072),
        ("gpt-oss-20b-andyrdt", "resid_post_layer_3_trainer_0", "blocks.3.hook_resid_post", None),
        ("gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76", "blocks.0.mlp.hook_in", 16_384),
        ("gemma-scope-2-1b-it-transcoders-all", "layer_9_width_262k_l0_small_affine", "blocks.9.mlp.hook_in",
         262_144),
        ("mwhanna-qwen3-14b-transcoders-lowl0", "layer_39", "blocks.39.mlp.hook_in", None),
    ],
)  # fmt: skip
def test_place_and_width_follow_from_names(release, sae_id, hook_point, width):
    of = releases()[release]
    (sae,) = [sae for sae in of.saes if sae.id == sae_id]
    assert (of.hook_point(sae), of.width(sae)) == (hook_point, width)


def test_every_sae_that_opens_has_a_place():
    assert all(of.hook_point(sae) for of in releases().values() if of.status == "opens" for sae in of.saes)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub(folder, "owner/name", "path") puts a folder there; hub.asked lists what was fetched."""
    import huggingface_hub

    def put(source: Path, repo: str, path: str, **changes) -> None:
        target = tmp_path / repo / path
        if source.is_file():
            target.parent.mkdir(parents=True)
            shutil.copy(source, target)
            return
        shutil.copytree(source, target)
        if changes:
            cfg = json.loads((target / "cfg.json").read_text()) | changes
            (target / "cfg.json").write_text(json.dumps(cfg))

    def snapshot(repo, allow_patterns):
        put.asked.append((repo, tuple(allow_patterns)))
        if not (tmp_path / repo).is_dir():
            raise ConnectionError("no route to host")
        return str(tmp_path / repo)

    put.asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: [])
    return put


PATH = "layer_20/width_16k/average_l0_71"


@pytest.mark.parametrize(
    "names",
    [
        (f"gemma-scope-2b-pt-res/{PATH}",),
        ("gemma-scope-2b-pt-res", PATH),
        ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"),
        ("google/gemma-scope-2b-pt-res", PATH),
        (f"google/gemma-scope-2b-pt-res/{PATH}",),
    ],
)
def test_a_release_and_a_repository_open_by_one_name_or_two(golden, hub, names):
    hub(golden("gemma_scope").folder, "google/gemma-scope-2b-pt-res", PATH)
    sae = SparseAutoencoder.load(*names)
    assert sae.config.trained_on == "google/gemma-2-2b at blocks.20.hook_resid_post"
    assert sae.config.metadata["saelens_lite"]["source"] == f"google/gemma-scope-2b-pt-res/{PATH}"
    assert f"{PATH}/params.npz" in hub.asked[0][1]
    if names[0].startswith("gemma"):
        assert hub.asked == [("google/gemma-scope-2b-pt-res", (f"{PATH}/params.npz",))]


def test_one_file_of_a_repository_is_fetched_alone(hub, tmp_path):
    repo = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    shapes = {"W_enc": (64, 12), "b_enc": (64,), "W_dec": (12, 64), "b_dec": (12,)}
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "layer5.sae.pt")
    hub(tmp_path / "layer5.sae.pt", repo, "layer5.sae.pt")
    config = SparseAutoencoder.load("qwen-scope-3-1.7b-base-w32k-l50", "layer5").config
    assert (config.k, config.hook_point, config.model_name) == (
        50,
        "blocks.5.hook_resid_post",
        "Qwen/Qwen3-1.7B-Base",
    )
    assert hub.asked == [(repo, ("layer5.sae.pt",))]


def test_what_exists_goes_before_a_release_of_its_name(golden, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(golden("sparsify").folder, tmp_path / "gpt2-small-res-jb")
    assert SparseAutoencoder.load("gpt2-small-res-jb").kind == "topk" and not hub.asked


@pytest.mark.parametrize("release", [True, False])
def test_the_table_knows_that_a_model_was_centred(golden, hub, release):
    """The folder itself does not say it; by repository the SAE is the same one."""
    repo, sae_id = "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"
    hub(golden("saelens_of_version_2").folder, repo, sae_id, hook_point=sae_id)
    config = SparseAutoencoder.load("gpt2-small-res-jb" if release else repo, sae_id).config
    assert config.normalize_activations == "center"
    assert config.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}


def test_a_scale_that_only_the_table_has_is_folded(golden, hub):
    """mlp-tm, block 0: s = 1.0493; with it x - mean(x) is scaled, encoded, decoded, scaled back."""
    repo, path = "tommmcgrath/gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1"
    case = golden("saelens_of_version_2")
    hub(case.folder, repo, path, normalize_activations=True, hook_point="blocks.0.hook_mlp_out")
    sae = SparseAutoencoder.load("gpt2-small-mlp-tm", "blocks.0.hook_mlp_out")
    (listed,) = [sae for sae in releases()["gpt2-small-mlp-tm"].saes if sae.id == "blocks.0.hook_mlp_out"]
    assert listed.scale == pytest.approx(1.049317316132615)
    x = case.rows.double()
    mean = x.mean(-1, keepdim=True)
    latents, recons, _ = case.forward((x - mean) * listed.scale)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(case.rows).to_dense().double(), latents, rtol=1e-5, atol=1e-5)
        expected = recons / listed.scale + mean
        torch.testing.assert_close(sae(case.rows).recons.double(), expected, rtol=1e-5, atol=1e-5)
    assert SparseAutoencoder.load(repo, path).config.normalize_activations == "center"


def test_transcoders_of_a_release_open_by_its_name(golden, hub):
    case, repo = golden("circuit_tracer_relu"), "mwhanna/qwen3-0.6b-transcoders-lowl0"
    hub(case.folder, repo, "layer_3.safetensors")
    transcoder = Transcoder.load("mwhanna-qwen3-0.6b-transcoders-lowl0", "layer_3")
    assert hub.asked[0][0] == repo and {"config.yaml", "layer_3.safetensors"} <= {*hub.asked[0][1]}
    assert (transcoder.kind, transcoder.config.hook_point) == ("relu", "blocks.3.mlp.hook_in")
    with pytest.raises(ValueError, match="expected an SAE, got a transcoder of 12 to 12"):
        SparseAutoencoder.load("mwhanna-qwen3-0.6b-transcoders-lowl0", "layer_3")
    affine = golden("gemma_scope_2_affine_transcoder")
    path = "transcoder/layer_7_width_16k_l0_small_affine"
    hub(affine.folder, "google/gemma-scope-2-1b-it", path)
    opened = Transcoder.load("gemma-scope-2-1b-it-transcoders", path)
    assert opened.target.skip and opened.target.hook_point == "blocks.7.hook_mlp_out"


def test_without_the_tables_scale_the_normalisation_is_refused(golden, hub):
    hub(golden("saelens_of_version_2").folder, "me/mine", "a", normalize_activations=True)
    with pytest.raises(ValueError, match="'expected_average_only_in' is not supported"):
        SparseAutoencoder.load("me/mine", "a")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_72",), "got 'layer_20/width_16k/.*_72' .did"),
        (("gpt2-small-res-jb",), "release gpt2-small-res-jb expected one of its 13 SAEs, got 'none'"),
        (("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_0"), "refused: its latents write to all layers"),
        (("temporal-sae-gemma-2-2b",), "refused: its latents depend on the tokens before"),
        (("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",), "refused: the SAEs of token embeddings"),
    ],
)  # fmt: skip
def test_what_a_release_has_not_or_is_not_opened_is_said_before_anything_is_fetched(hub, names, message):
    with pytest.raises((CheckpointError, ValueError), match=message):
        SparseAutoencoder.load(*names)
    assert not hub.asked


def test_offline_it_says_what_it_would_fetch(hub):
    message = (
        f"cannot fetch google/gemma-scope-2b-pt-res .*HF_HUB_OFFLINE is set; it would fetch {PATH}/params.npz"
    )
    with pytest.raises(CheckpointError, match=message):
        SparseAutoencoder.load("gemma-scope-2b-pt-res", PATH)


def test_saes_lists_releases_of_a_model_and_the_saes_of_one(capsys):
    assert main(["saes", "--model", "gemma-2-2b"]) == 0
    told = capsys.readouterr().out
    assert "20 releases of 1,731 SAEs: 18 open here, 2 refused" in told
    assert "temporal-sae-gemma-2-2b" in told and "licences: not recorded" in told and "gpt2" not in told
    assert main(["saes", "gpt2-small-res-jb"]) == 0
    told = capsys.readouterr().out
    assert 'sl.SparseAutoencoder.load("gpt2-small-res-jb", "blocks.0.hook_resid_pre")' in told
    assert "https://huggingface.co/jbloom/GPT2-Small-SAEs-Reformatted" in told
    assert main(["saes", "gemma-scope-2b-pt-transcoders"]) == 0
    id = "layer_0/width_16k/average_l0_76"
    call = f'saelens_lite.sae.Transcoder.load("gemma-scope-2b-pt-transcoders", "{id}", model=model)'
    assert call in capsys.readouterr().out
    assert main(["saes"]) == 0
    assert "170 releases of 13,857 SAEs: 166 open here" in capsys.readouterr().out
    assert main(["saes", "gpt2-small-res-jb", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 13 and (rows[8]["where"], rows[8]["status"]) == ("blocks.8.hook_resid_pre", "opens")
    assert main(["saes", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 171
    assert main(["saes", "gpt2-small-res-jc"]) == 2
    assert "did you mean 'gpt2-small-res-jb'" in capsys.readouterr().err
    assert main(["saes", "--model", "gemma-9"]) == 2
    assert "expected a part of a model's name, got 'gemma-9'" in capsys.readouterr().err
