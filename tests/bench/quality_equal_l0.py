"""The thresholds of saved jumprelu SAEs moved until l0 on the validation rows is k; fvu there; a JSON line
per folder.

    python tests/bench/quality_equal_l0.py runs/quality/saes/*-batchtopk-*

BatchTopK and Matryoshka fit their threshold to training rows, on which l0 is k; on other rows it is not, and
fvu at unequal l0 compares little. One factor for all thresholds is fitted to the very rows that are scored,
which can only flatter. Both sides are opened by our loader; the line begins with the scores as saved, to be
held against those in results.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from score import load_rows
from torch import Tensor

BATCH_ROWS = 2048
SPARE = 1.5
"""So many times k latents a row are kept while the k · n largest of all rows are looked for."""


@torch.no_grad()
def scores_at_l0(folder: Path, acts: Tensor, l0: int) -> dict[str, float | str]:
    """fvu and l0 of a jumprelu SAE as saved, and with its thresholds times the factor that gives this l0.

    acts: float32[n_rows d_model]
    """
    import saelens_lite as sl

    sae = sl.SparseAutoencoder.load(folder)
    if sae.kind != "jumprelu":
        raise SystemExit(
            f"{folder} expected a jumprelu SAE, got kind {sae.kind}: only those have thresholds to move"
        )

    def pre_acts(rows: Tensor) -> Tensor:
        return (rows - sae.b_dec) @ sae.W_enc + sae.b_enc

    largest = [
        (pre_acts(rows) / sae.threshold).view(-1).topk(round(SPARE * l0) * len(rows), sorted=False).values
        for rows in acts.split(BATCH_ROWS)
    ]
    of_all = torch.cat(largest)
    factor = of_all.kthvalue(len(of_all) - l0 * len(acts)).values  # the largest that must not pass
    if max(float(values.min()) for values in largest) >= factor:
        raise SystemExit(
            f"{folder}: a batch may hold more than {SPARE:g} times {l0} latents a row; raise SPARE"
        )

    variance = float((acts.double() - acts.double().mean(0)).square().sum())

    def fvu_and_l0(factor: Tensor | float) -> tuple[float, float]:
        error, n_firing = 0.0, 0
        for rows in acts.split(BATCH_ROWS):
            pre = pre_acts(rows)
            latent_acts = pre * ((pre > sae.threshold * factor) & (pre > 0))
            n_firing += int(latent_acts.count_nonzero())
            error += float((rows - latent_acts @ sae.W_dec - sae.b_dec).double().square().sum())
        return error / variance, n_firing / len(acts)

    (fvu, saved_l0), (fvu_moved, moved_l0) = fvu_and_l0(1.0), fvu_and_l0(factor)
    return {
        "sae": folder.name, "fvu": fvu, "l0": saved_l0, "factor": float(factor),
        "fvu_moved": fvu_moved, "l0_moved": moved_l0
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("saes", type=Path, nargs="+", help="folders of jumprelu SAEs, ours or SAELens'")
    parser.add_argument(
        "--data", type=Path, help="folder with validation.safetensors; default: data/ of the same output"
    )
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    acts = load_rows((args.data or args.saes[0].parents[1] / "data") / "validation.safetensors").float()
    for folder in args.saes:
        print(json.dumps(scores_at_l0(folder, acts, args.k)), flush=True)


if __name__ == "__main__":
    main()
