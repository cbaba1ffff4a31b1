"""The model card of published SAEs: evaluations beside controls, training, store, and how to load them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saelens_lite.hub.published import PAGE, PublishedSAE
from saelens_lite.text_table import Lines, cell, markdown_table, number

_COLUMNS = {
    "fvu": ("fvu", ".4f"),
    "l0": ("l0", ".1f"),
    "delta_ce": ("ΔCE (nats)", ".4f"),
    "kl": ("KL", ".4f"),
    "ce_score_mean": ("score(mean)", ".3f"),
}
_NOT_TOLD = (
    "store", "output", "overwrite", "device", "progress", "wandb_project", "prefetch", "latent_shards",
    "baseline", "eval_every_steps", "eval_rows", "eval_ce_tokens", "log_every_steps",
    "checkpoint_every_steps", "keep_checkpoints", "buffer_rows",
)  # fmt: skip
"""Settings of a run that say where it ran and what it wrote, and not what was trained."""
_WITH = {
    "k_anneal_start": {"k_anneal_fraction"},
    "resample_fraction": {"resample_every_steps"},
    "matryoshka_fractions": {"matryoshka"},
    "l1_coeff": {"relu", "gated"},
    "jumprelu_penalty": {"jumprelu"},
    "pre_act_coeff": {"jumprelu"},
    "aux_coeff": {"topk", "batchtopk", "matryoshka", "jumprelu"},
}
"""Settings that matter beside another one, or for these kinds alone."""


def model_card(
    repo: str,
    saes: Sequence[PublishedSAE],
    *,
    license: str | None = None,
    store: Mapping[str, Any] | None = None,
    page: bool = False,
) -> str:
    """The README.md of a repository.

    license: an identifier of the hub, such as apache-2.0; without one the card says nothing of it
    store: facts of the activation store by name; page: whether the feature page is in the repository
    """
    first = saes[0]
    model, point = _place(first)
    title = repo.split("/")[-1]
    parts = [_front_matter(model, license), f"# {title}"]
    where = f"`{point}` of {model}" if point else model
    parts.append(f"{_count(saes)} of {where}, trained with saelens_lite and saved as SAELens folders.")
    parts += [_evaluations(saes), _loading(repo, first), _training(saes), _store(first, store)]
    if page:
        parts.append(
            f"## Features\n\n[{PAGE}]({PAGE}) shows the latents with their strongest firings. Download it "
            "and open it in a browser."
        )
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(model: str, license: str | None) -> str:
    """YAML, whose strings are written as JSON, since names come from data."""
    lines = ["library_name: saelens", "tags: [saelens, sparse-autoencoder, mechanistic-interpretability]"]
    if license:
        lines.append(f"license: {json.dumps(license)}")
    if model.count("/") == 1:
        lines.append(f"base_model: {json.dumps(model)}")
    return "\n".join(["---", *lines, "---"])


def _place(sae: PublishedSAE) -> tuple[str, str]:
    metadata = sae.cfg.get("metadata") or {}
    return str(metadata.get("model_name") or "a language model"), str(metadata.get("hook_name") or "")


def _count(saes: Sequence[PublishedSAE]) -> str:
    return "A sparse autoencoder" if len(saes) == 1 else f"{len(saes)} sparse autoencoders"


def _evaluations(saes: Sequence[PublishedSAE]) -> str:
    """A line for each SAE, its baseline and, after the last, the ablations."""
    evaluated = [sae for sae in saes if sae.evaluation is not None]
    if not evaluated:
        return "## Evaluation\n\nNot evaluated."
    found = [(sae.name, row) for sae in evaluated for row in (sae.evaluation or {}).get("rows", [])]
    rows = [(name, row) for name, row in found if row.get("given", True)]
    windows = [key for _, row in rows for key in row if key.startswith("dead@") and row[key] is not None]
    columns = {
        key: shown for key, shown in _COLUMNS.items() if any(row.get(key) is not None for _, row in rows)
    }
    columns |= {key: (key, ".3f") for key in windows[-1:]}
    lines: Lines = [["", *(head for head, _ in columns.values())]]
    for name, row in rows:
        if "ablation" in row["name"] and name != evaluated[-1].name:
            continue
        shown = name if row["name"] == "trained" else f"{name}: {row['name']}"
        shown = row["name"] if "ablation" in row["name"] else shown
        lines.append([shown, *(number(row.get(key), spec, "") for key, (_, spec) in columns.items())])
    last = evaluated[-1].evaluation or {}
    rows_of = "held-out documents" if last.get("held_out") else "all documents"
    said = f"Over {last.get('n_tokens', 0):,} tokens of {rows_of}."
    given = any(row["name"] == "baseline" for _, row in rows)
    said += (
        " The baseline is the same training with a frozen random decoder."
        if given
        else " No baseline was given: what a dictionary of random directions reaches is not known."
    )
    said += " fvu is the fraction of variance unexplained, l0 the latents that fire on a token"
    said += ", ΔCE what the reconstruction costs the model." if "delta_ce" in columns else "."
    missing = [sae.name for sae in saes if sae.evaluation is None]
    said += f" Not evaluated: {', '.join(missing)}." if missing else ""
    return f"## Evaluation\n\n{markdown_table(lines)}\n\n{said}"


def _loading(repo: str, first: PublishedSAE) -> str:
    where = f"{json.dumps(repo)}, {json.dumps(first.name)}"
    return (
        "## Loading\n\n```python\nimport saelens_lite as sl\n\n"
        f"sae = sl.SparseAutoencoder.load({where})\n```\n\nIn SAELens:\n\n"
        f"```python\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained({where})\n```"
    )


def _training(saes: Sequence[PublishedSAE]) -> str:
    """A column for each SAE; of several the settings that are alike stand once."""
    settings = {}
    for sae in saes:
        facts = (sae.cfg.get("metadata") or {}).get("saelens_lite") or {}
        told = {key: facts[key] for key in ("steps", "tokens", "lr") if facts.get(key) is not None}
        settings_of = {k: v for k, v in (facts.get("train") or {}).items() if v not in (None, False, 0)}
        there = {settings_of.get("kind"), *settings_of}
        given = {
            key: value
            for key, value in settings_of.items()
            if key not in _NOT_TOLD and _WITH.get(key, there) & there
        }
        of_sae = {"architecture": sae.cfg.get("architecture"), "latents": sae.cfg.get("d_sae")}
        settings[sae.name] = of_sae | given | told
    names = list(dict.fromkeys(name for of in settings.values() for name in of))
    rows = [[name, *(cell(of.get(name)) for of in settings.values())] for name in names]
    same = [[name, values[0]] for name, *values in rows if len(set(values)) == 1]
    differ = [row for row in rows if len(set(row[1:])) > 1]
    text = f"## Training\n\n{markdown_table([['setting', 'value'], *same])}"
    return f"{text}\n\n{markdown_table([['setting', *settings], *differ])}" if differ else text


def _store(first: PublishedSAE, store: Mapping[str, Any] | None) -> str:
    metadata = first.cfg.get("metadata") or {}
    fingerprint = (metadata.get("saelens_lite") or {}).get("store")
    facts = {
        "sha256 of the store": fingerprint,
        "context length": metadata.get("context_size"),
        **(store or {}),
    }
    rows = [[name, cell(value)] for name, value in facts.items() if value]
    return f"## Activations\n\n{markdown_table([['', ''], *rows])}" if rows else ""
