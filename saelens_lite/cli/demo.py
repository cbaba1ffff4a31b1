"""`saelens-lite demo`: the whole way on the embedded model, from text to the effect of one latent.

What is shown follows printed rules; nothing is picked by hand. A store in the output folder is completed; the
SAEs are trained anew and are the same for the same seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import quiet_loading
from saelens_lite.config import AtLeast
from saelens_lite.demo.corpus import Document, documents
from saelens_lite.demo.embedded import load_model
from saelens_lite.text_table import aligned, number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saelens_lite.analyze.evaluation.result import Evaluation
    from saelens_lite.analyze.index.feature_table import FeatureTable, LatentFirings
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.store.reader import ActivationStore

COLUMNS = 100
"""Width that the output is made for."""

HOOK_POINT = "blocks.2.hook_resid_post"
DEAD_WINDOW_TOKENS = 100_000
N_SHOWN = 5
FIRING_RATES = (2e-4, 2e-2)
"""Latents shown fire on a share of tokens between these."""
N_CONTROLS = 100


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Harvest, train with a baseline, evaluate, look at features and ablate one, on the embedded language
    model."""

    output: str = "demo_run"
    """Folder for the store, the two SAEs and the HTML page."""

    seed: int = 0
    """Of the order of the documents, of training, and of the draws among latents."""

    max_tokens: Annotated[int, AtLeast(1)] = 600_000
    """Rows to harvest."""

    d_sae: Annotated[int, AtLeast(1)] = 1536
    """Latents of the dictionary: 8 times the model's width."""

    k: Annotated[int, AtLeast(1)] = 16
    """Latents kept a token."""

    n_steps: Annotated[int, AtLeast(1)] = 1000
    """Training steps of 2,048 rows, for the SAE and for its baseline each."""

    progress: bool = True
    """Show progress bars."""


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run and print the demo. Returns evaluation, shown latents, ablation and the page's path, for tests."""
    import saelens_lite as sl

    output, began = Path(config.output), time.perf_counter()
    quiet_loading()
    model, tokenizer = load_model()
    corpus = documents(config.seed)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    _say(
        f"A language model of {n_parameters / 1e6:.1f} M parameters that comes with the package, and the "
        f"{len(corpus)} modules of this Python's standard library, most of which it was trained on. Nothing "
        "is downloaded. A model so small knows the look of Python and little else: what follows shows the "
        "way, not what large models hold."
    )

    with _phase(f"1  harvest {config.max_tokens:,} activations of {HOOK_POINT} (layer 3 of 4)"):
        store = sl.harvest_activations(
            model,
            corpus,
            [HOOK_POINT],
            output / "store",
            max_tokens=config.max_tokens,
            tokenizer=tokenizer,
            progress=config.progress,
        )
    with _phase(
        f"2  train a TopK SAE (d_sae={config.d_sae}, k={config.k}), and its baseline with a frozen random "
        "decoder"
    ):
        saes = {name: _trained(store, config, output / name, name == "frozen") for name in ("topk", "frozen")}
    sae = saes["topk"]
    with _phase("3  evaluate on held-out modules"):
        evaluation = sl.evaluate_sae(
            sae, store, model, saes["frozen"], max_tokens=25_000, windows_tokens=(DEAD_WINDOW_TOKENS,)
        )
        print(_table(evaluation))
    with _phase(f"4  {N_SHOWN} features"):
        table = sl.max_activating_tokens(sae, store, n=64, tokenizer=tokenizer, context_tokens=24)
        shown = _drawn_latents(table, config.seed)
        _print_features(table, shown, corpus)
    with _phase("5  ablate one of them"):
        ablation = _ablation(model, sae, store, table, shown, config.seed)
        if ablation is None:
            _say(
                "None of them has one of its strongest firings in a module of training and another in a "
                "held-out one."
            )
        else:
            _print_ablation(ablation, tokenizer)
    with _phase("6  write the page"):
        page = sl.feature_page(
            sae, store, output / "features.html", model, evaluation=evaluation, tokenizer=tokenizer
        )
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    print(f"   features to look through, in any browser:  {page}")
    print(f"   the SAE, in SAELens' own format:           {output / 'topk'}")
    return {"evaluation": evaluation, "latents": shown, "ablation": ablation, "page": page}


def _trained(store: ActivationStore, config: DemoConfig, output: Path, frozen: bool) -> SparseAutoencoder:
    import saelens_lite as sl

    return sl.train_sae(
        store,
        kind="topk",
        k=config.k,
        d_sae=config.d_sae,
        n_steps=config.n_steps,
        batch_size_rows=2048,
        freeze_decoder=frozen,
        seed=config.seed,
        output=str(output),
        overwrite=True,
        progress=config.progress,
        device="cpu",
    )


def _table(evaluation: Evaluation) -> str:
    names = {"trained": "trained SAE", "baseline": "frozen decoder"}
    lines = [[" " * 16, "    fvu", "     l0", " dead@100k", " ΔCE (nats)"]]
    for row in evaluation.rows:
        dead = number(row.dead.get(DEAD_WINDOW_TOKENS), ".1%") if row.dead else ""
        l0 = f"{row.l0:.1f}" if row.l0 else ""
        lines.append([names.get(row.name, row.name), f"{row.fvu:.4f}", l0, dead, f"{row.delta_ce:.4f}"])
    note = (
        f"fvu: variance of the activations left unexplained, on {evaluation.n_tokens:,} tokens of modules "
        "that no SAE was trained on. dead: latents silent for the last 100k tokens of the store. ΔCE: nats a "
        f"token that the model loses when it runs on the replacement (as it is: {evaluation.ce_clean:.3f}, "
        f"on {evaluation.n_ce_tokens:,} tokens). What was learnt is what the SAE has over the frozen "
        "decoder, whose directions are random; the ablations give the scale."
    )
    return f"{_indented(aligned(lines))}\n{_wrapped(note)}"


def _drawn_latents(table: FeatureTable, seed: int) -> list[int]:
    eligible = _eligible(table)
    return sorted(random.Random(seed).sample(eligible, min(N_SHOWN, len(eligible))))


def _eligible(table: FeatureTable) -> list[int]:
    rates = table.n_fired.double() / table.n_tokens
    low, high = FIRING_RATES
    return table.latents[(rates >= low) & (rates <= high)].tolist()


def _print_features(table: FeatureTable, shown: list[int], corpus: list[Document]) -> None:
    low, high = FIRING_RATES
    _say(
        f"Drawn at random from the {len(_eligible(table)):,} latents that fire on {low:.2%} to {high:.0%} of "
        "tokens; of each the three modules where it fires most strongly, with the place. ⟦ ⟧ marks the token "
        "it fires on."
    )
    for latent in shown:
        view = table.latent(latent)
        print(f"   latent {latent}, fires on {view.density:.2%} of tokens; top tokens: {_top_tokens(view)}")
        for firing in _one_per_document(view)[:3]:
            print(f"     {firing.value:5.1f}  {_in_context(firing, corpus[firing.document]['name'])}")


def _one_per_document(view: LatentFirings) -> list[Any]:
    first: dict[int, Any] = {}
    for firing in view:
        first.setdefault(firing.document, firing)
    return list(first.values())


def _top_tokens(view: LatentFirings) -> str:
    tokens = [_visible(firing.token) for firing in list(view)[:20]]
    return "  ".join(sorted(dict.fromkeys(tokens), key=lambda token: -tokens.count(token))[:6])


def _in_context(firing: Any, name: str) -> str:
    before, token, after = (_visible(text) for text in (firing.before, firing.token, firing.after))
    name = name if len(name) <= 24 else "…" + name[-23:]
    room = COLUMNS - 12 - 2 - 26 - len(token)
    before = before[-(room * 2 // 3) :]
    after = after[: room - room * 2 // 3]
    return f"{before:>{room * 2 // 3}}⟦{token}⟧{after:<{room - room * 2 // 3}}  {name}"


def _visible(text: str) -> str:
    from saelens_lite.analyze.latents.text_windows import visible

    return visible(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Ablation:
    """What ablating one latent, and equally large edits along other directions, do to the next token.

    control: the first of the controls; value: activation of the latent at the last token of the context
    input_ids: int64[1 seq], the context, which ends where the latent fires
    clean, ablated, controlled: float32[vocab], next-token probabilities
    kl: of the ablation, in nats; control_kls: float32[n], of each control
    """

    latent: int
    control: int
    value: float
    input_ids: Tensor
    clean: Tensor
    ablated: Tensor
    controlled: Tensor
    kl: float
    control_kls: Tensor


def _ablation(
    model: nn.Module,
    sae: SparseAutoencoder,
    store: ActivationStore,
    table: FeatureTable,
    shown: list[int],
    seed: int,
) -> Ablation | None:
    """Ablate the shown latent that matters most: chosen in modules of training, measured in a held-out one.

    None if no latent has both among its strongest firings.
    """
    import torch

    from saelens_lite.hashing import is_held_out

    # latent → its strongest firing in a module of training, and in a held-out one
    places: dict[int, list[Any]] = {}
    for latent in shown:
        firings = list(table.latent(latent))
        held_out = is_held_out([firing.document for firing in firings]).tolist() if firings else []
        first = [
            next((f for f, out in zip(firings, held_out) if out == want), None) for want in (False, True)
        ]
        if None not in first:
            places[latent] = first
    if not places:
        return None

    def ablation(latent: int, firing: Any) -> tuple[Tensor, Tensor, Tensor]:
        input_ids = _context_up_to(store, firing)
        edits = (None, ("ablate", latent, 0.0))
        return input_ids, *(_next_log_probs(model, sae, input_ids, edit) for edit in edits)

    latent = max(places, key=lambda candidate: _kl(*ablation(candidate, places[candidate][0])[1:]))
    firing = places[latent][1]
    input_ids, clean, ablated = ablation(latent, firing)
    controls = _controls(table, latent, seed)
    others = [
        _next_log_probs(model, sae, input_ids, ("push", control, -firing.value)) for control in controls
    ]
    return Ablation(
        latent=latent,
        control=controls[0],
        value=firing.value,
        input_ids=input_ids,
        clean=clean.exp(),
        ablated=ablated.exp(),
        controlled=others[0].exp(),
        kl=_kl(clean, ablated),
        control_kls=torch.tensor([_kl(clean, other) for other in others]),
    )


def _controls(table: FeatureTable, latent: int, seed: int) -> list[int]:
    rates = table.n_fired.double().clamp_min(0.5).log()
    distance = (rates - rates[latent]).abs()
    possible = table.n_fired > 0
    possible[latent] = False
    distance[~possible] = float("inf")
    nearest = distance.argsort(stable=True)[: min(N_CONTROLS, int(possible.sum()))].tolist()
    random.Random(seed).shuffle(nearest)
    return nearest


def _context_up_to(store: ActivationStore, firing: Any) -> Tensor:
    """int64[1 seq], up to the token it fires on."""
    where = firing.context
    return store.tokens(where.shard).input_ids[where.sequence, : where.position + 1].long()[None]


def _next_log_probs(
    model: nn.Module, sae: SparseAutoencoder, input_ids: Tensor, edit: tuple[str, int, float] | None
) -> Tensor:
    """float32[vocab] after the context, with ("ablate" or "push", latent, strength) at its last token."""
    import torch

    import saelens_lite as sl

    last = torch.zeros(input_ids.shape, dtype=torch.bool)
    last[:, -1] = True
    how: Any = contextlib.nullcontext()
    if edit is not None:
        kind, latent, strength = edit
        if kind == "ablate":
            how = sl.ablate(model, sae, [latent], where=last)
        else:
            how = sl.steer(model, sae, [latent], strength, where=last)
    with torch.no_grad(), how:
        return model(input_ids=input_ids).logits[0, -1].float().log_softmax(-1)


def _kl(clean: Tensor, other: Tensor) -> float:
    from saelens_lite.lm.losses import kl_divergence

    return float(kl_divergence(clean, other))


def _print_ablation(ablation: Ablation, tokenizer: Any) -> None:
    _say(
        f"Latent {ablation.latent}: of the {N_SHOWN} the one whose ablation moves the next token most in a "
        "module of training; measured here where it fires most strongly in a held-out module. Control: the "
        f"stream moved equally far along the direction of latent {ablation.control}, drawn among those that "
        "fire about as often."
    )
    text = _visible(tokenizer.decode(ablation.input_ids[0, 1:]))
    width = COLUMNS - 8
    print(f"   {'…' + text[-width + 1 :] if len(text) > width else text}▮\n")
    columns = []
    for probabilities in (ablation.clean, ablation.ablated, ablation.controlled):
        top = zip(*(part.tolist() for part in probabilities.topk(5)))
        columns.append([f"{p:6.1%}  {_visible(tokenizer.decode([i]))[:17]}" for p, i in top])
    head = ("before".ljust(25), f"latent {ablation.latent} ablated".ljust(25), "control")
    print(_indented(aligned([head, *zip(*columns)], left=3)))
    below, n = int((ablation.control_kls < ablation.kl).sum()), len(ablation.control_kls)
    print(
        f"\n   KL from before: {ablation.kl:.3f} nats; of {n} such controls {below} have less "
        f"(median {ablation.control_kls.median():.3f}, largest {ablation.control_kls.max():.3f})"
    )


@contextlib.contextmanager
def _phase(title: str) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    began = time.perf_counter()
    yield
    print(f"{f'{time.perf_counter() - began:.0f} s':>{COLUMNS}}", flush=True)


def _indented(text: str) -> str:
    return textwrap.indent(text, "   ")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, COLUMNS, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False)


def _say(text: str) -> None:
    print(_wrapped(text))


def run(argv: Sequence[str]) -> None:
    """The whole way on a small embedded model, in three minutes"""
    run_demo(configured(DemoConfig, "demo", argv))
