"""A decoder looks each of its parts up once, and changes nothing in the model."""

import pytest
import torch
import transformers
from torch import nn

from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.hooks import capture, edit, hook_points, resolve, run_to

from ..bench.architectures import child

IDS = torch.tensor([[1, 80, 90, 70]])
POINT = "blocks.1.hook_mlp_out"


def test_the_parts_of_a_model(gpt2):
    decoder = Decoder(gpt2)
    assert (decoder.path, len(decoder.layers), decoder.width) == ("transformer.h", 2, 32)
    assert decoder.layers is gpt2.transformer.h and decoder.head is gpt2.lm_head
    assert decoder.outside_in == [gpt2, gpt2.transformer]
    assert decoder.device == torch.device("cpu") and decoder.class_name == "GPT2LMHeadModel"
    assert decoder.parts(1).attn == "attn" and decoder.accepts("use_cache") and not decoder.accepts("logits")
    assert Decoder.of(decoder) is decoder and Decoder.of(gpt2).bare is gpt2


def test_a_decoder_that_is_handed_on_looks_for_its_blocks_once(gpt2, monkeypatch):
    scans = []
    found = Decoder._blocks.func
    counted = lambda decoder: scans.append(decoder) or found(decoder)  # noqa: E731
    monkeypatch.setattr(Decoder._blocks, "func", counted)
    decoder = Decoder(gpt2)
    hook_points(decoder)
    with edit(decoder, POINT, lambda acts, info: acts * 2):
        run_to(decoder, [POINT, "blocks.0.hook_attn_out"], input_ids=IDS)
    resolve(decoder, "transformer.h.1.mlp")
    assert [of for of in scans if of is decoder] == [decoder]


def test_a_decoder_does_in_the_place_of_its_model(gpt2):
    (of_model,) = run_to(gpt2, [POINT], input_ids=IDS).values()
    (of_decoder,) = run_to(Decoder(gpt2), [POINT], input_ids=IDS).values()
    assert torch.equal(of_model, of_decoder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.modules())


def test_a_model_without_an_output_embedding_has_no_head(gpt2):
    with pytest.raises(
        ValueError, match="expected a model with an output embedding, got GPT2Model.*ForCausalLM"
    ):
        _ = Decoder(gpt2.transformer).head
    with pytest.raises(ValueError, match="got Linear"):
        _ = Decoder(nn.Linear(2, 2)).head


def test_every_block_is_looked_at_not_one_of_its_class(gpt2):
    """Two blocks of one class; the stream after the second is halved, so no two of its parts add up."""
    gpt2.transformer.h[1].register_forward_hook(lambda module, args, output: output / 2)
    decoder = Decoder(gpt2)
    assert decoder.parts(0).mlp == "mlp" and decoder.parts(1) is None
    assert [name for name in hook_points(gpt2) if name.startswith("blocks.1")] == [
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
    ]
    with pytest.raises(HookError, match="no two parts of block 1 .* add up to the change of the stream"):
        resolve(gpt2, "blocks.1.hook_attn_out")


def test_blocks_are_looked_at_in_one_pass(gpt2):
    passes = []
    gpt2.register_forward_pre_hook(lambda *_: passes.append(1))
    hook_points(gpt2)
    resolve(gpt2, "transformer.h.0.mlp.act")
    assert len(passes) == 1
    gpt2.transformer.h[1] = type(gpt2.transformer.h[1])(gpt2.config, 1).eval()  # a new block is looked at
    assert Decoder(gpt2).parts(1).attn == "attn" and len(passes) == 2


def albert():
    config = transformers.AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.AlbertForMaskedLM(config).eval(), "albert.encoder.albert_layer_groups.0", 4


def one_activation():
    """The same SiLU in every MLP, and so under three names."""
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.mlp.act_fn = model.model.layers[0].mlp.act_fn
    return model, "model.layers.0.mlp.act_fn", 3


def blocks_in_cycles():
    """Each block twice, as in HRM."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    ).eval()
    block = model.transformer.h[0]
    forward, model.transformer.h[1].forward = model.transformer.h[1].forward, None

    def twice(stream, *args, **kwargs):
        return forward(block(stream, *args, **kwargs), *args, **kwargs)

    model.transformer.h[1].forward = twice
    return model, "blocks.0.hook_resid_post", 2


@pytest.mark.parametrize("make", [albert, one_activation, blocks_in_cycles])
def test_a_module_that_runs_several_times_is_no_single_place(make):
    model, name, n_runs = make()
    for read in (
        lambda: run_to(model, [name], input_ids=IDS % 40),
        lambda: capture(model, [name]).__enter__(),
        lambda: edit(model, name, lambda acts, info: acts).__enter__(),
    ):
        with pytest.raises(HookError, match=f"a module that runs once .*, which runs {n_runs} times"):
            read()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("n_codebooks", [1, 4])
def test_a_model_with_an_embedding_for_each_codebook(n_codebooks):
    """MusicGen: four tokens a position, as four rows of input_ids."""
    config = transformers.MusicgenDecoderConfig(
        vocab_size=40,
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        ffn_dim=24,
        num_codebooks=n_codebooks,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    model = transformers.MusicgenForCausalLM(config).eval()
    decoder = Decoder(model)
    assert (decoder.path, decoder.width, decoder.n_codebooks) == ("model.decoder.layers", 16, n_codebooks)
    ids = (torch.arange(20) % 40).view(4, 5)
    name = "blocks.1.hook_resid_pre"
    assert run_to(model, [name], input_ids=ids)[name].shape == (4 // n_codebooks, 5, 16)


# blocks feed each other


def bert(n_layers=3):
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        is_decoder=True,
    )
    return transformers.BertLMHeadModel(config).eval()


@pytest.mark.parametrize("n_layers", [1, 3])
def test_blocks_that_stand_in_an_encoder_away_from_the_embedding(n_layers):
    model = bert(n_layers)
    assert Decoder(model).path == "bert.encoder.layer"
    points = hook_points(model)
    assert points == [f"blocks.{i}.hook_resid_{side}" for i in range(n_layers) for side in ("pre", "post")]
    found = run_to(model, points, input_ids=IDS)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    for i in range(n_layers):
        assert torch.equal(found[f"blocks.{i}.hook_resid_pre"], states[i])
        assert torch.equal(found[f"blocks.{i}.hook_resid_post"], states[i + 1])


def test_a_list_whose_members_do_not_feed_each_other_is_not_the_blocks():
    """XLM keeps attentions, norms and MLPs in lists beside the embedding."""
    config = transformers.XLMConfig(vocab_size=100, emb_dim=16, n_layers=3, n_heads=2, n_langs=1, causal=True)
    model = transformers.XLMWithLMHeadModel(config).eval()
    assert hook_points(model) == []
    for point in ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"):
        with pytest.raises(
            HookError,
            match=r"XLMWithLMHeadModel do not feed each other: transformer\.attentions\.1 is not called on "
            r"what transformer\.attentions\.0 gave. Name a module by its path",
        ):
            run_to(model, [point], input_ids=IDS)
    name = "transformer.attentions.1"
    assert run_to(model, [name], input_ids=IDS)[name].shape == (1, 4, 16)


class Doubling(nn.Linear):
    def forward(self, stream, second=None):
        return super().forward(stream), stream


class Chain(nn.Module):
    """Two blocks, and what happens to the stream between them."""

    def __init__(self, between):
        super().__init__()
        self.embed, self.layers = nn.Embedding(100, 4), nn.ModuleList(Doubling(4, 4) for _ in range(2))
        self.between = between

    def forward(self, input_ids):
        stream, second = self.layers[0](self.embed(input_ids))
        return self.layers[1](*self.between(stream, second))


@pytest.mark.parametrize(
    "between", [lambda a, b: (a,), lambda a, b: (a.clone(),), lambda a, b: (a.flatten(0, 1),)]
)
def test_blocks_may_copy_and_reshape_what_the_one_before_gave(between):
    model = Chain(between)
    assert len(hook_points(model)) == 4
    point = "blocks.1.hook_resid_pre"
    (got,) = run_to(model, [point], input_ids=IDS).values()
    torch.testing.assert_close(got.flatten(), model.layers[0](model.embed(IDS))[0].flatten())


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda a, b: (a / 2,), r"layers\.1 is not called on what layers\.0 gave"),
        (lambda a, b: (b,), r"layers\.1 is not called on what layers\.0 gave"),
        (lambda a, b: (a[:, :2],), r"layers\.1 is not called on what layers\.0 gave"),
        (lambda a, b: (a, b), r"layers\.1 is called on two streams that layers\.0 gave"),
    ],
)
def test_blocks_between_which_the_stream_changes_are_refused(between, why):
    model = Chain(between)
    assert hook_points(model) == []
    for point in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        with pytest.raises(HookError, match=why), edit(model, point, lambda acts, info: acts):
            pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_callers_own_hook_on_a_block_does_not_part_the_blocks(gpt2):
    gpt2.transformer.h[1].register_forward_pre_hook(lambda _module, args: (args[0] + 1, *args[1:]))
    assert len(hook_points(gpt2)) == 8


def test_a_longer_list_that_text_does_not_run_is_not_the_blocks():
    """GIT: an image encoder with more layers stands beside the text's."""
    model = bert(2)
    model.bert.image_encoder = nn.Module()
    model.bert.image_encoder.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(5))
    assert Decoder(model).path == "bert.encoder.layer"


# classes of transformers

VERDICTS = {
    "llama": "ok",
    "gpt2": "ok",
    "gpt_neox": "ok",
    "falcon": "ok",
    "gemma3_text": "ok",
    "mixtral": "ok",
    "deepseek_v3": "ok",
    "bloom": "partial",  # the residual is added inside its parts
    "mamba": "partial",  # one part a block
    "gemma3n_text": "refusal",  # four streams
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", VERDICTS)
def test_ten_classes_of_different_layouts(kind):
    """Every point gives what references outside the package give (all classes: bench/architectures.py)."""
    found = child(kind)
    assert (found["verdict"], found["wrong"], found["crash"]) == (VERDICTS[kind], [], [])
