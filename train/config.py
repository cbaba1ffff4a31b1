"""What the training of an SAE is: every field, its unit, its default and where the default comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from saelens_lite.config import Above, AtLeast, AtMost, Below

from .presets import PRESETS, PresetName
from .run_config import FREE, OF_ROWS, OF_SEED, RunConfig

KindName = Literal["topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"]

LEFT_OPEN: Mapping[str, Any] = {
    "kind": "topk",
    "k": 32,
    "matryoshka_fractions": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
}
"""What stands for fields that are None, unless `init_from` says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(RunConfig):
    """One SAE trained on one hook point of an activation store.

    A field that its kind does not use is refused where a run begins: by train_sae, train_grid,
    train_streaming and the command line. The configuration itself holds it, as a grid over kinds may need it.
    """

    preset: Annotated[PresetName | None, FREE] = None
    """Published recipe of presets.py for all fields that are not given. train_sae and the command line fill
    them in."""
    kind: KindName | None = None
    """topk (Gao et al. 2024), batchtopk (Bussmann et al. 2024), matryoshka (batchtopk with nested prefixes,
    Bussmann et al. 2025), relu with an L1 penalty (Bricken et al. 2023), gated or jumprelu (both
    Rajamanoharan et al. 2024). batchtopk and matryoshka save jumprelu SAEs. None: that of `init_from`, else
    topk. A field that the kind does not use is refused."""
    k: Annotated[int | None, AtLeast(1)] = None
    """Latents kept a token, by batchtopk and matryoshka on average over a batch; of topk and these two only.
    More explain more and say less. None: that of `init_from`, else 32. The command line takes auto too: see
    l0_choice.py."""
    k_anneal_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """Share of the run over which k falls linearly from `k_anneal_start` times itself; of the kinds that keep
    k; 0 keeps k throughout. More latents learn early on, and less of the run is left for the k that is saved,
    which costs short runs. Of the recipe that leads SynthSAEBench (arXiv:2602.14687), from 60 to 25."""
    k_anneal_start: Annotated[float, AtLeast(1)] = 4.0
    """k at the first step as a multiple of k, at most d_sae; with `k_anneal_fraction`."""
    matryoshka_fractions: tuple[float, ...] | None = None
    """Prefixes of the dictionary that reconstruct alone, as shares of d_sae, ascending to 1; matryoshka only.
    Smaller ones keep general features together and cost some reconstruction. None: those of `init_from`, else
    1/16, 1/8, 1/4, 1/2, 1; Bussmann et al. 2025 have widths that double."""
    expansion: Annotated[int, AtLeast(1)] = 16
    """d_sae as a multiple of d_model; not used when d_sae is given."""
    d_sae: Annotated[int | None, AtLeast(1)] = None
    """Number of latents."""
    l1_coeff: Annotated[float, AtLeast(0)] = 5.0
    """Weight of the L1 penalty; relu and gated. In the scale of `scale_input`, so comparable between models
    and with SAELens. More means fewer latents a token. With `target_l0` the weight that training begins
    with."""
    refit_fraction: Annotated[float | None, AtLeast(0), Below(1)] = None
    """Share of the run, its last, that fits again what the L1 penalty shrank, while every firing stays as it
    is; relu only. The penalty is off then, and the encoder frozen; decoder rows, one magnitude a latent and
    b_dec learn. None: 0.2. More leaves fewer steps to learn what to select; 0 leaves the phase out. Wright &
    Sharkey 2024; see refit.py."""
    multi_topk_coeff: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the reconstruction from 4 k latents, which keeps an SAE of use with more than k of them; topk
    only. 1/8 in Gao et al. 2024; 0 switches it off."""
    unit_decoder: bool = True
    """Decoder rows of norm 1, kept so by projection. Without it, for relu and jumprelu, norms are free,
    penalties weigh each latent by its norm (Anthropic, April 2024), and norms are folded into the encoder on
    save."""
    jumprelu_penalty: Literal["step", "tanh"] = "step"
    """jumprelu only: the number of latents that are on (Rajamanoharan et al. 2024), or a smooth step of their
    activations with a pull on those that are off (Anthropic, January 2025)."""
    l0_coeff: Annotated[float | None, Above(0)] = None
    """Weight of the jumprelu penalty, in the scale of `scale_input`; more means fewer latents a token. None:
    1, or d_model with a target, which is dictionary_learning's 1 in this scale."""
    target_l0: Annotated[float | None, Above(0)] = None
    """Latents a token to end with; relu, gated and jumprelu. For relu and gated, `l1_coeff` follows the l0
    that batches have; for jumprelu the penalty step is (l0 / target_l0 − 1)² in place of l0
    (dictionary_learning). None leaves l0 to the coefficient."""
    bandwidth: Annotated[float | None, Above(0)] = None
    """jumprelu only: width around the threshold in which its gradient is estimated. None: 0.5 for step, wider
    than Gemma Scope's 0.001 · sqrt(d_model), which needs longer runs; 2 for tanh, its source's."""
    initial_threshold: Annotated[float | None, Above(0)] = None
    """jumprelu only. None: those of `init_from`, else 0.3 for step, a standard deviation of pre-activations
    at the start; 0.1 for tanh, its source's. A threshold changes by about a factor 1 + lr a step: one far too
    small stays so in a short run."""
    pre_act_coeff: Annotated[float, AtLeast(0)] = 3e-6
    """With the penalty tanh: weight of what draws latents that are off towards their thresholds."""
    input_noise: Annotated[float, AtLeast(0)] = 0.0
    """Standard deviation of the Gaussian noise added to what the encoder sees, in the scale of `scale_input`,
    in which a coordinate has about 1; the loss is of the rows without it. More leaves out what is faint. 0
    switches it off. Vincent et al. 2008, denoising autoencoders."""
    contractive_coeff: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the squared derivative of latents by input, summed over both, in the scale of `scale_input`:
    more makes latents steadier and fewer, and the encoder smaller. 0 switches it off. Rifai et al. 2011; see
    contraction.py."""
    aux_coeff: Annotated[float, AtLeast(0)] = 1 / 32
    """Weight of the AuxK loss that revives dead latents, of the kinds that keep k; 0 switches it off. Gao et
    al. 2024."""
    k_aux: Annotated[int | None, AtLeast(1)] = None
    """Dead latents a token may use in the AuxK loss; None: d_model / 2."""
    dead_after_tokens: Annotated[int | None, AtLeast(1)] = None
    """A latent is dead once it was silent for this many training tokens. None: min(10M, 10 % of the run), but
    at least 10 · d_sae / k, in which a living latent fires."""
    resample_every_steps: Annotated[int | None, AtLeast(1)] = None
    """Steps between resamplings, at which dead latents start again along inputs that are reconstructed badly
    (Bricken et al. 2023; see resample.py); of relu, gated and jumprelu. None: never. Fewer revive sooner and
    leave less time to settle; Bricken et al. have dead_after_tokens at half of them."""
    resample_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 2 / 3
    """Share of the run in which latents are resampled; by default until the learning rate falls. More leaves
    those that come late less time to learn."""
    lr: Annotated[float | None, Above(0)] = None
    """Peak learning rate of Adam; None: `schedules.default_lr`, which grows for short runs and small
    dictionaries, and is larger for relu and gated."""
    adam_beta1: Annotated[float, AtLeast(0), Below(1)] = 0.9
    """Decay of Adam's first moment a step."""
    adam_beta2: Annotated[float, AtLeast(0), Below(1)] = 0.999
    """Decay of Adam's second moment a step."""
    clip_norm: Annotated[float | None, Above(0)] = None
    """Gradients of a step are scaled down together where their norm exceeds this; None: never. Less bounds
    what one batch of outliers can do; as Adam has no scale, the same factor at every step would change
    nothing."""
    gather_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the sparse step gathers decoder rows and inputs in, once a firing pair; of the kinds that keep k.
    bfloat16 copies halve what a GPU reads there; weights, sums and moments stay float32. On a CPU the numbers
    are rounded alike and nothing is saved."""
    warm_up_steps: Annotated[int | None, AtLeast(0)] = None
    """Steps of linear warm-up of the learning rate; None: min(1000, 5 % of the run)."""
    decay_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 1 / 3
    """The last share of the run over which the learning rate falls linearly to 0."""
    l1_warm_up_steps: Annotated[int | None, AtLeast(0)] = None
    """Steps over which the L1 coefficient, or that of the jumprelu penalty, rises from 0. None: the whole run
    for the penalty tanh (Anthropic, January 2025), else 5 % of it (April 2024), but at least 1,000 steps or,
    in a shorter run, a fifth of it."""
    freeze_decoder: bool = False
    """Keep the random unit-norm decoder as it starts: the baseline a dictionary has to beat
    (arXiv:2602.14111)."""
    baseline: Annotated[bool, FREE] = False
    """Train the same with freeze_decoder beside it, on the same batches, into the folder frozen in `output`.
    Where metrics.jsonl has held_out_fvu, it then has the baseline's as baseline_fvu."""
    init_from: str | None = None
    """Folder of an SAE, ours or SAELens', from whose weights training starts: fine-tuning. d_sae is its own
    then, kind, k and thresholds too unless they are given, and lr by default that of the end of a long run.
    Latents with a decoder row of zero stay silent. None: a fresh one."""
    end_to_end: Annotated[Literal["kl", "ce"] | None, OF_ROWS] = None
    """Fine-tune `init_from` through the language model: half of the loss is the KL divergence of its
    predictions from the clean ones, or their cross-entropy (Karvonen 2025, arXiv:2503.17272). A batch is
    whole contexts then, of about batch_size_rows tokens. Not for gated and matryoshka, and thresholds stay as
    they are; None trains on rows alone."""
    eval_ce_tokens: Annotated[int, AtLeast(1), OF_SEED] = 8192
    """With a model: predicted tokens of held-out documents, at most, over which an evaluation measures what
    the reconstruction costs in cross-entropy. More take longer, forward passes at every evaluation."""
    latent_shards: Annotated[int, AtLeast(1), FREE] = 1
    """Processes of a torchrun among which the latents are divided, for a dictionary larger than one device;
    their number over this is how many share each batch. Rounding apart, every division trains the same
    SAE."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)  # super() fails in a dataclass with slots
        if self.preset is not None:
            defaults = {field.name: field.default for field in fields(self)} | LEFT_OPEN
            own = {name: value for name, value in PRESETS[self.preset].items() if value != defaults[name]}
            taken = not own or any(getattr(self, name) == value for name, value in own.items())
            way = "at least one field as the preset has it (train_sae(store, preset=…) fills them in)"
            self.expect(taken, "preset", way)
        resampled = self.resample_every_steps is not None
        frozen = "None with freeze_decoder, whose rows stay as they are"
        self.expect(not (resampled and self.freeze_decoder), "resample_every_steps", frozen)
        fresh = self.d_sae is None or self.init_from is None
        self.expect(fresh, "d_sae", "None with init_from, whose width it is")
        random_rows = not self.freeze_decoder and self.init_from is None
        no_baseline = "False with freeze_decoder, which is the baseline, or init_from"
        self.expect(random_rows or not self.baseline, "baseline", no_baseline)
