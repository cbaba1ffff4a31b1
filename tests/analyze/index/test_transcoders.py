"""The index and the page of a transcoder: what fires on its input, what its directions promote."""

import pytest
import torch

from saelens_lite.analyze.attribution.lens import logit_lens
from saelens_lite.analyze.index.build import index_features
from saelens_lite.analyze.index.output_score import FACTOR, PROMPT
from saelens_lite.analyze.pages.page_of_features import feature_page
from saelens_lite.harvest import harvest_activations
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.transcoder import Transcoder

from ..conftest import TEXTS

READS, WRITES = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"


@pytest.fixture
def transcoder():
    target = Target(d_model=32, skip=True, hook_point=WRITES)
    config = SAEConfig(
        d_model=32, d_sae=48, kind="topk", k=4, hook_point=READS, apply_b_dec_to_input=False, target=target
    )
    made, generator = Transcoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def both_places(shared_gpt2, byte_tokenizer, tmp_path_factory):
    """A store of what the first MLP reads and adds."""
    folder = tmp_path_factory.mktemp("both") / "store"
    return harvest_activations(
        shared_gpt2, TEXTS, [READS, WRITES], folder, tokenizer=byte_tokenizer, context_length=32,
        batch_size_seqs=4, documents_per_shard=16, max_tokens=600, dtype="float32", progress=False,
    )  # fmt: skip


def test_the_index_and_the_page(both_places, transcoder, gpt2, byte_tokenizer, tmp_path):
    """Counts by hand from the rows that are read; the lens is that of decoder rows, and the score that of a
    latent's direction added where it writes."""
    index = index_features(
        transcoder, both_places, tmp_path / "index", gpt2, tokenizer=byte_tokenizer, output_score=True
    )
    x = both_places.gather(torch.arange(both_places.n_rows), READS)
    with torch.no_grad():
        pre_acts = x @ transcoder.W_enc + transcoder.b_enc
        kept = pre_acts >= pre_acts.topk(4).values[:, 3:]
        counts = (kept & (pre_acts > 0)).sum(0)
    assert index.hook_point == READS and torch.equal(index.tally.counts.long(), counts)
    lens = logit_lens(transcoder, gpt2, None, n=10)
    with torch.no_grad():
        assert torch.equal(lens.top_ids[:, 0], (transcoder.W_dec @ gpt2.lm_head.weight.T).argmax(1))

    latent = int(counts.argmax())
    added = FACTOR * index.tally.top.values[latent, 0].float() * transcoder.W_dec[latent]
    ids, found = byte_tokenizer(PROMPT, return_tensors="pt").input_ids, []
    for strength in (0.0, 1.0):

        def push(module, args, output, strength=strength):
            return torch.cat([output[:, :-1], output[:, -1:] + strength * added], dim=1)

        handle = gpt2.transformer.h[0].mlp.register_forward_hook(push)
        with torch.no_grad():
            p = gpt2(ids).logits[0, -1].softmax(-1)
        handle.remove()
        best = p[lens.top_ids[latent]].max()
        found.append(float((1 - (p > best).sum() / len(p)) * best))
    assert index[latent].output_score == pytest.approx(found[1] - found[0], abs=1e-5)

    page = tmp_path / "page.html"
    feature_page(transcoder, both_places, page, gpt2, index=index, tokenizer=byte_tokenizer, n_latents=4)
    assert READS in page.read_text(encoding="utf-8")
