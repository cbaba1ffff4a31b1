"""Our evaluation beside SAELens' `run_evals`, on the same SAE, the embedded model and the same contexts.

SAELens runs the model through its HookedProxyLM at our SAE's module; its activation store is replaced by one
that hands out the contexts of ours, in one batch. With `keep_special_tokens` on our side and
`exclude_special_tokens=False` on theirs both replace and score every position, and the definitions agree.
With the defaults of both they differ in what the docstring of saelens_lite/variants.py says, by amounts that
are worked out here.
"""

import itertools
import json
import subprocess

import pytest
from safetensors.torch import load_file, save_file

import saelens_lite as sl
from saelens_lite.analyze.evaluation.library_variants import LibraryVariants
from saelens_lite.demo.corpus import stdlib_documents
from saelens_lite.demo.embedded import MODEL_DIR, load_model
from saelens_lite.lm.losses import token_losses
from saelens_lite.lm.replacement import splice

pytestmark = pytest.mark.peer

POINT = "blocks.2.hook_resid_post"
CONTEXTS, LENGTH = 12, 64
EVALUATE_WITH_SAELENS = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, get_recons_loss, run_evals
from sae_lens.load_model import load_model
from sae_lens.training.activation_scaler import ActivationScaler
from sparsify import SparseCoder, SparseCoderConfig

class Contexts:
    def __init__(self, ids):
        self.ids, self.context_size, self.store_batch_size_prompts = ids, ids.shape[1], len(ids)
    def get_batch_tokens(self, batch_size):
        return self.ids[:batch_size]
    def reset_input_dataset(self):
        pass

answers = {}
for name, exclude in (("every position", False), ("defaults", True)):
    ids = load_file(f"{name}.safetensors")["ids"]
    sae = SAE.load_from_disk(f"{name} sae")
    module = sae.cfg.metadata.hf_hook_name
    sae.cfg.metadata.hook_name = module
    model = load_model("AutoModelForCausalLM", sys.argv[1], "cpu", {"dtype": torch.float32}, [module])
    config = get_eval_everything_config(len(ids), 1, 1)
    store, scaler = Contexts(ids), ActivationScaler()
    metrics, latents = run_evals(sae, store, model, scaler, config, exclude_special_tokens=exclude)
    by_token = get_recons_loss(sae, model, scaler, ids, True, True, [0, 1, 2] if exclude else None)
    answers[name] = {key: value for group in metrics.values() for key, value in group.items()}
    answers[name]["kl_before_a_token"] = by_token["kl_div_with_sae"][:, :-1].mean().item()
    cosines = torch.tensor(latents["encoder_decoder_cosine_sim"])
    answers[name]["encoder_decoder_cosine_sim"] = cosines.mean().item()

torch.manual_seed(0)
acts = torch.randn(300, 16) + 5 * torch.randn(16)
coder = SparseCoder(16, SparseCoderConfig(num_latents=64, k=4))
out = coder(acts)
answers["sparsify fvu"] = out.fvu.item()
save_file({"acts": acts, "recons": out.sae_out.detach()}, "sparsify.safetensors")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def both(peer_python, tmp_path_factory):
    """Of each way of counting positions: our row and the cross-entropy of the model, theirs, the SAE, and the
    token ids."""
    folder = tmp_path_factory.mktemp("evals")
    model, tokenizer = load_model()
    text = "\n".join(document["text"] for document in itertools.islice(stdlib_documents(), 3))
    ours = {}
    for name, keep in (("every position", True), ("defaults", False)):
        rows = CONTEXTS * (LENGTH if keep else LENGTH - 1)
        options = {
            "context_length": LENGTH,
            "keep_special_tokens": keep,
            "dtype": "float32",
            "progress": False,
        }
        store = sl.harvest_activations(
            model, [text], [POINT], folder / name, max_tokens=rows, tokenizer=tokenizer, **options
        )
        short = {
            "d_sae": 384,
            "k": 16,
            "n_steps": 40,
            "batch_size_rows": 256,
            "held_out_fraction": 0.0,
            "device": "cpu",
        }
        sae = sl.train_sae(store, output=str(folder / f"{name} sae"), progress=False, **short)
        found = sl.evaluate_sae(sae, store, model, held_out=False, max_tokens=None)
        ids = store.tokens(0).input_ids.long()
        assert store.n_shards == 1 and ids.shape == (CONTEXTS, LENGTH) and found.n_tokens == rows
        save_file({"ids": ids}, folder / f"{name}.safetensors")
        ours[name] = {
            "row": found.row("trained"),
            "zero": found.row("zero ablation"),
            "clean": found.ce_clean,
            "ids": ids,
        }
    command = [str(peer_python), "-c", EVALUATE_WITH_SAELENS, str(MODEL_DIR)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    return ours, theirs, model, load_file(folder / "sparsify.safetensors")


RECONSTRUCTION = {
    "l0": "l0", "l1": "l1", "mse": "mse", "cosine": "cossim", "norm_ratio": "l2_ratio",
    "explained_variance": "explained_variance", "ev_legacy": "explained_variance_legacy",
    "relative_bias": "relative_reconstruction_bias", "encoder_decoder_cosine": "encoder_decoder_cosine_sim",
}  # fmt: skip


@pytest.mark.parametrize("name", ["every position", "defaults"])
@pytest.mark.parametrize("number", RECONSTRUCTION)
def test_reconstruction_and_sparsity_agree(both, name, number):
    ours, theirs, *_ = both
    assert ours[name]["row"].numbers()[number] == pytest.approx(
        theirs[name][RECONSTRUCTION[number]], rel=1e-3, abs=1e-3
    )


def test_cross_entropy_and_its_ablation_agree_where_the_same_positions_count(both):
    ours, theirs, *_ = both
    mine, saelens = ours["every position"], theirs["every position"]
    assert mine["clean"] == pytest.approx(saelens["ce_loss_without_sae"], abs=1e-3)
    assert mine["row"].ce == pytest.approx(saelens["ce_loss_with_sae"], abs=1e-3)
    assert mine["row"].delta_ce == pytest.approx(
        saelens["ce_loss_with_sae"] - saelens["ce_loss_without_sae"], abs=1e-3
    )
    assert mine["row"].delta_ce > 0.01
    assert mine["zero"].ce == pytest.approx(saelens["ce_loss_with_ablation"], abs=1e-3)
    assert mine["row"].ce_score_zero == pytest.approx(saelens["ce_loss_score"], abs=1e-3)


def test_their_divergence_counts_the_last_position_too(both):
    """Ours are the positions before a scored token, as for the cross-entropy."""
    ours, theirs, *_ = both
    kl, saelens = ours["every position"]["row"].kl, theirs["every position"]
    assert kl == pytest.approx(saelens["kl_before_a_token"], abs=1e-3)
    assert kl > 0.1 and saelens["kl_div_with_sae"] != pytest.approx(kl, abs=1e-6)


def test_by_default_they_leave_out_the_first_prediction_of_a_context(both):
    """It comes from BOS, which both leave as it is: it adds nothing to the damage but counts among our
    tokens."""
    ours, theirs, *_ = both
    saelens = theirs["defaults"]
    delta = saelens["ce_loss_with_sae"] - saelens["ce_loss_without_sae"]
    assert ours["defaults"]["row"].delta_ce == pytest.approx(delta * (LENGTH - 2) / (LENGTH - 1), abs=1e-3)


def test_by_default_their_zero_ablation_takes_the_special_tokens_too(both):
    ours, theirs, model, _ = both
    mine, saelens = ours["defaults"], theirs["defaults"]["ce_loss_with_ablation"]
    with splice(model, None, POINT, "zero", positions="all"):
        everywhere = token_losses(model, mine["ids"])[:, 1:].mean().item()
    assert saelens == pytest.approx(everywhere, abs=1e-3)
    assert mine["zero"].ce != pytest.approx(saelens, abs=0.1)


def test_the_fvu_of_sparsify(both):
    _, theirs, _, batch = both
    found = LibraryVariants()
    found.update(batch["acts"], batch["recons"])
    assert found.values()["sparsify"] == pytest.approx(1 - theirs["sparsify fvu"], abs=1e-5)
