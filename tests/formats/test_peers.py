"""What other libraries' own code computes from the golden folders, and from what we write for them.

Where they are right we agree; where SAELens is not, a test holds the origin's value.
"""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.sae.autoencoder import SparseAutoencoder

pytestmark = pytest.mark.peer

SPARSIFY = """
import sys
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
for folder, rows, answer in zip(*[iter(sys.argv[1:])] * 3):
    x = load_file(rows)["rows"]
    coder = SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        acts, indices, _ = coder.encode(x)
        latents = torch.zeros(len(x), coder.num_latents).scatter(1, indices, acts)
        skip = coder.W_skip if coder.cfg.skip_connection else None
        recons = coder.decode(acts, indices) + (0 if skip is None else x @ skip.mT)
        save_file({"latents": latents, "recons": recons.contiguous()}, answer)
"""
DICTIONARY_LEARNING = """
import importlib.util, json, sys, types
import torch
from safetensors.torch import load_file, save_file
found = importlib.util.find_spec("dictionary_learning")
if found is None:
    sys.exit(77)
package = types.ModuleType("dictionary_learning")  # its own __init__ imports nnsight, for harvesting
package.__path__ = list(found.submodule_search_locations)
sys.modules["dictionary_learning"] = package
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
for folder, rows, answer in zip(*[iter(sys.argv[1:])] * 3):
    trainer = json.load(open(folder + "/config.json"))["trainer"]
    cls, options = globals()[trainer["dict_class"]], {}
    if trainer["dict_class"] == "AutoEncoder":
        options = {"normalize_decoder": False}  # which would rescale latents
    if "k" in trainer:
        options = {"k": trainer["k"]}
    x = load_file(rows)["rows"]
    dictionary = cls.from_pretrained(folder + "/ae.pt", **options)
    with torch.no_grad():
        latents = dictionary.encode(x)
        recons = dictionary.decode(latents)
        save_file({"latents": latents.contiguous(), "recons": recons.contiguous()}, answer)
"""
SAELENS = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
import sae_lens.loading.pretrained_sae_loaders as loaders
from sae_lens import SAE
for loader, root, repo, folder, rows, answer in zip(*[iter(sys.argv[1:])] * 6):
    def local(repo_id, filename, subfolder=None, root=root, **_):
        file = Path(root, subfolder or "", filename)
        if not file.exists():
            raise loaders.EntryNotFoundError(str(file))
        return str(file)
    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda _, file: {
        name: list(t.shape) for name, t in load_file(Path(root, file)).items()
    }
    cfg, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](
        repo, folder, "cpu", False, {"d_in": 12, "d_sae": 32, "dtype": "float32"}
    )
    cfg = loaders.handle_config_defaulting(cfg)
    sae = SAE.get_sae_class_for_architecture(cfg["architecture"])(
        SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg)
    )
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({name: t.float().contiguous() for name, t in state.items()})
    if sae.cfg.normalize_activations == "expected_average_only_in":
        norms = json.load(open(Path(root, folder, "hyperparams.json")))["dataset_average_activation_norm"]
        sae.fold_activation_norm_scaling_factor(12**0.5 / norms["in"])
    if sae.cfg.reshape_activations == "hook_z":
        sae.turn_off_forward_pass_hook_z_reshaping()
    x = load_file(rows)["rows"]
    with torch.no_grad():
        save_file({"latents": sae.encode(x).contiguous(), "recons": sae(x).contiguous()}, answer)
"""
SAELENS_FOLDERS = """
import sys
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
for folder, rows, answer in zip(*[iter(sys.argv[1:])] * 3):
    x = load_file(rows)["rows"]
    try:
        sae = SAE.load_from_disk(folder)
    except Exception as error:
        save_file({"refused": torch.zeros(1)}, answer)
        continue
    with torch.no_grad():
        save_file({"latents": sae.encode(x).contiguous(), "recons": sae(x).contiguous()}, answer)
"""
FOUR = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


@pytest.fixture(scope="module")
def ask(peer_python, tmp_path_factory):
    """ask(SPARSIFY, [(folder, ...)], rows): what the peer's code computes for each, from one process."""

    def run(code, jobs, rows):
        scratch = tmp_path_factory.mktemp("peer")
        arguments = []
        for n, (job, x) in enumerate(zip(jobs, rows)):
            save_file({"rows": x.contiguous()}, scratch / f"rows{n}.safetensors")
            arguments += [*map(str, job), str(scratch / f"rows{n}.safetensors"), str(scratch / f"answer{n}")]
        done = subprocess.run([str(peer_python), "-c", code, *arguments], capture_output=True, text=True)
        if done.returncode == 77:
            pytest.skip("dictionary_learning absent: make peers")
        assert done.returncode == 0, done.stderr[-2000:]
        return [load_file(scratch / f"answer{n}") for n in range(len(jobs))]

    return run


def assert_agree(sae: SparseAutoencoder, rows: torch.Tensor, theirs: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the norm of each row; both sides compute in float32."""
    with torch.no_grad():
        ours = {"latents": sae.encode(rows).to_dense(), "recons": sae(rows).recons}
    for name, expected in theirs.items():
        off = (ours[name] - expected).norm(dim=-1)
        assert (off <= 1e-5 * expected.norm(dim=-1).clamp_min(1e-6)).all(), (name, off.tolist())


def test_sparsify_computes_the_same_from_its_folders_and_from_ours(golden, ask, tmp_path):
    names = ("sparsify", "sparsify_of_old", "sparsify_skip_transcoder", "dictionary_AutoEncoderTopK")
    cases = [golden(name) for name in (*names, "qwen_scope", "sparsify_skip_transcoder")]
    saes = [case.load() for case in cases]
    folders = [case.folder for case in cases[:3]]
    folders += [sae.export(tmp_path / f"layers.{n}", "sparsify") for n, sae in enumerate(saes) if n > 2]
    rows = [case.rows for case in cases]
    for sae, x, theirs in zip(saes, rows, ask(SPARSIFY, [(folder,) for folder in folders], rows)):
        assert_agree(sae, x, theirs)


def test_dictionary_learning_computes_the_same_from_its_folders_and_from_ours(golden, ask, tmp_path):
    classes = (
        "AutoEncoder AutoEncoderNew AutoEncoderTopK BatchTopKSAE MatryoshkaBatchTopKSAE GatedAutoEncoder"
    )
    names = [f"dictionary_{dict_class}" for dict_class in (*classes.split(), "JumpReluAutoEncoder")]
    cases = [
        golden(name) for name in (*names, "gemma_scope", "goodfire", "qwen_scope", "saelens_of_version_2")
    ]
    saes = [SparseAutoencoder.load(case.folder) for case in cases]
    folders = [
        case.folder
        if case.format == "dictionary_learning"
        else sae.export(tmp_path / str(n), "dictionary_learning")
        for n, (case, sae) in enumerate(zip(cases, saes))
    ]
    rows = [case.rows for case in cases]
    for sae, x, theirs in zip(saes, rows, ask(DICTIONARY_LEARNING, [(folder,) for folder in folders], rows)):
        assert_agree(sae, x, theirs)


def jobs_of(golden, loaders):
    for loader, name, repo in loaders:
        case = golden(name)
        root = golden.root / name
        root = root / case.folder.relative_to(root).parts[0]
        yield (loader, root, repo, case.folder.relative_to(root)), case


def test_saelens_computes_the_same_where_it_follows_the_origin(golden, ask):
    loaders = [
        ("gemma_2", "gemma_scope", "google/gemma-scope-2b-pt-res"),
        ("gemma_2", "gemma_scope_in_lower_case", "google/gemma-scope-9b-it-att"),
        ("gemma_3", "gemma_scope_2", "google/gemma-scope-2-270m-pt"),
        ("gemma_3", "gemma_scope_2_without_config", "google/gemma-scope-2-4b-it"),
        ("gemma_3", "gemma_scope_2_affine_transcoder", "google/gemma-scope-2-1b-it"),
        ("gemma_3", "gemma_scope_2_transcoder_without_config", "google/gemma-scope-2-270m-pt"),
        ("qwen_scope", "qwen_scope", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"),
        ("goodfire", "goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"),
        ("deepseek_r1", "deepseek_r1", "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19"),
    ]
    jobs, cases = zip(*jobs_of(golden, loaders))
    for case, theirs in zip(cases, ask(SAELENS, jobs, [case.rows for case in cases])):
        assert_agree(case.load(), case.rows, theirs)


def test_saelens_opens_transcoders_as_it_writes_them_and_as_we_do(golden, ask, tmp_path):
    cases = [golden(f"saelens_{architecture}") for architecture in FOUR] * 2
    cases += [golden("gemma_scope_2_affine_transcoder"), golden("sparsify_skip_transcoder")]
    saes = [case.load() for case in cases]
    folders = [case.folder for case in cases[:4]]
    folders += [sae.save(tmp_path / str(n)) for n, sae in enumerate(saes) if n >= 4]
    rows = [case.rows for case in cases]
    *answers, of_topk = ask(SAELENS_FOLDERS, [(folder,) for folder in folders], rows)
    for sae, x, theirs in zip(saes, rows, answers):
        assert (x == 0).all(-1).any() and x.norm(dim=-1).max() > 5e3
        assert_agree(sae, x, theirs)
    assert list(of_topk) == ["refused"]  # it would apply a plain ReLU


def test_saelens_leaves_decoder_norms_out_of_llama_scopes_gate(golden, ask):
    """Theirs: threshold θ · s for every latent; ours, as the origin's: θ / ‖column‖."""
    (job,), (case,) = zip(*jobs_of(golden, [("llama_scope", "llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x")]))
    (theirs,) = ask(SAELENS, [job], [case.rows])
    expected = case.forward(case.rows.double())[0]
    ours = SparseAutoencoder.load(case.folder).encode(case.rows).to_dense()
    torch.testing.assert_close((ours > 0), (expected > 0))
    assert ((theirs["latents"] > 0) != (expected > 0)).any()
    on = (theirs["latents"] > 0) & (expected > 0)
    torch.testing.assert_close(theirs["latents"][on].double(), expected[on], rtol=1e-4, atol=1e-4)
