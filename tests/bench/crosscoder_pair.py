"""A planted pair of models: which latents are called one model's alone, by ours and by an L1 crosscoder.

    .venv/bin/python tests/bench/crosscoder_pair.py           # everything still missing; a JSON line per run
    .venv/bin/python tests/bench/crosscoder_pair.py --report

Both models' rows are sums of planted directions (synthetic.py, 256 dimensions a side, 12 features on a row).
Of 1,200 features 1,000 are on both sides alike, 100 are shared but weaker on one side (.3 to .7 of the other,
50 on each), 50 are the tuned model's alone and 50 the base's alone. An exclusive feature is found where a
latent called exclusive to its side has a cosine above .9 with it there. Falsely exclusive: called exclusive,
and the planted feature nearest to its row is shared. Latents that fire on fewer than 1 in 100,000 rows do
not count. Ours: BatchTopK, by decoder norms and latent scaling (`exclusive_latents`), and by norms alone.
The rival: ReLU, Σ z Σ_m ‖d_m‖ as the penalty, decoder norms free, in plain autograd (Lindsey et al. 2024), at
the weights given, by norms, and by latent scaling too.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from l1 import Bench, bench_parser
from torch import Tensor, nn

import saelens_lite as sl
from saelens_lite.analyze.model_diffing.scaling import latent_scaling
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.crosscoder import EXCLUSIVE, Crosscoder
from saelens_lite.store.derived import DerivedStore, paired_store
from saelens_lite.train.crosscoders import side_of, train_crosscoder

N_SHARED, N_WEAK, N_ALONE = 1000, 100, 50
WIDTH, K, D_SAE, BATCH = 256, 12, 1536, 2048


class Pair:
    """The planted features by kind, and the rows of both sides."""

    def __init__(self, output: Path, n_rows: int) -> None:
        n_features = N_SHARED + N_WEAK + 2 * N_ALONE
        config = sl.synthetic.SyntheticConfig(
            d_model=WIDTH, n_features=n_features, l0=K, zipf_exponent=0.3
        )
        self.world = sl.synthetic.SyntheticActivations(config)
        draw = torch.Generator().manual_seed(1)
        order = torch.randperm(n_features, generator=draw)
        self.shared, weak, base, tuned = order.split([N_SHARED, N_WEAK, N_ALONE, N_ALONE])
        self.shared = torch.cat([self.shared, weak])
        self.alone = (base, tuned)
        self.strength = torch.ones(2, n_features)
        self.strength[0, weak[::2]] = 0.3 + 0.4 * torch.rand(len(weak[::2]), generator=draw)
        self.strength[1, weak[1::2]] = 0.3 + 0.4 * torch.rand(len(weak[1::2]), generator=draw)
        self.strength[1, base] = self.strength[0, tuned] = 0
        folder = output / f"data/pair-{n_rows}"
        if not (folder / "tuned/manifest.json").exists():
            sides: tuple[list[Tensor], list[Tensor]] = ([], [])
            for chunk in self.world.chunks(0, n_rows):
                of = chunk.latents
                for rows, strength in zip(sides, self.strength):
                    directions = self.world.directions * strength[:, None]
                    rows.append(kernels.decode(of.values, of.indices, of.offsets, directions))
            for name, rows in zip(("base", "tuned"), sides):
                documents = np.arange(n_rows) // sl.synthetic.BLOCK_ROWS
                acts = torch.cat(rows).numpy()
                sl.ActivationStore.from_arrays(folder / name, {"rows": acts}, documents=documents)
        self.stores = [sl.ActivationStore(folder / name) for name in ("base", "tuned")]
        self.rows: DerivedStore = paired_store(self.stores)

    def scores(self, crosscoder: Crosscoder) -> dict[str, Any]:
        lean = crosscoder.lean().cpu()
        found: dict[str, Any] = {}
        nearest = [
            nn.functional.normalize(crosscoder.decoder(side).detach(), dim=1) @ self.world.directions.T
            for side in (0, 1)
        ]
        n = {"norms": [0, 0, 0], "norms and scaling": [0, 0, 0]}  # found, falsely exclusive, called exclusive
        n_directions = 0
        for side, chosen in ((0, lean <= 1 - EXCLUSIVE), (1, lean >= EXCLUSIVE)):
            scaling = latent_scaling(crosscoder, self.rows, of=side, against=1 - side)
            often = scaling.n_fired > 1e-5 * self.rows.n_rows
            n_directions += int((nearest[side][:, self.alone[side]] > 0.9).any(0).sum())
            for name, called in (("norms", chosen), ("norms and scaling", chosen & scaling.exclusive)):
                called = called & often
                cosines = nearest[side][called]
                n[name][0] += int((cosines[:, self.alone[side]] > 0.9).any(0).sum())
                n[name][1] += int(torch.isin(cosines.argmax(1), self.shared).sum())
                n[name][2] += int(called.sum())
        for name, (right, false, called) in n.items():
            found[name] = {"recall": right / (2 * N_ALONE), "falsely exclusive": false, "called": called}
        rows = self.rows.acts(0)[:20_000]
        with torch.no_grad():
            out = crosscoder(rows)
        fvu = (out.recons - rows).square().sum() / (rows - rows.mean(0)).square().sum()
        found |= {"with its direction": n_directions / (2 * N_ALONE), "fvu": float(fvu)}
        return {**found, "l0": float((out.latents.values > 0).sum() / len(rows))}


def l1_crosscoder(pair: Pair, weight: float, seed: int, steps: int, lr: float) -> Crosscoder:
    """Lindsey et al. 2024 on the sides' rows in their scales."""
    torch.manual_seed(seed)
    sides = tuple(side_of(store, None) for store in pair.stores)
    rows = paired_store(pair.stores, None, [side.scale for side in sides])
    W_dec = nn.Parameter(0.1 * nn.functional.normalize(torch.randn(D_SAE, 2 * WIDTH), dim=1))
    W_enc = nn.Parameter(W_dec.detach().T.clone())
    b_enc, b_dec = nn.Parameter(torch.zeros(D_SAE)), nn.Parameter(torch.zeros(2 * WIDTH))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=lr)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (steps - step) / (steps / 5))
        x = rows.gather(torch.randint(rows.n_rows, (BATCH,), generator=draw).sort().values)
        z = ((x - b_dec) @ W_enc + b_enc).relu()
        norms = W_dec.view(D_SAE, 2, WIDTH).norm(dim=2).sum(1)
        penalty = weight * min(1.0, (step + 1) / (0.05 * steps)) * (z @ norms).mean()
        loss = (z @ W_dec + b_dec - x).square().sum(1).mean() + penalty
        adam.zero_grad()
        loss.backward()
        adam.step()
    sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=2 * WIDTH, d_sae=D_SAE, kind="relu"))
    state = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    sae.load_state_dict({name: value.detach() for name, value in state.items()})
    return Crosscoder.of_scaled(sae, sides)


def report(bench: Bench) -> None:
    for line in bench.lines.values():
        cells = [f"with its direction {line['with its direction']:.2f}", f"l0 {line['l0']:.1f}"]
        cells.append(f"fvu {line['fvu']:.3f}")
        for name in ("norms", "norms and scaling"):
            of = line[name]
            cells.append(
                f"by {name}: recall {of['recall']:.2f}, falsely {of['falsely exclusive']} of {of['called']}"
            )
        print(" | ".join([line["run"], *cells]))


def main() -> None:
    parser = bench_parser(__doc__, "crosscoder_pair")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--l1", type=float, nargs="*", default=[4.0, 8.0])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if args.report:
        report(bench)
        return
    pair = Pair(args.output, args.rows)
    for seed, weight in itertools.product(args.seeds, (None, *args.l1)):
        name = "batchtopk" if weight is None else f"l1={weight:g}"
        run = f"{name}-steps={args.steps}-rows={args.rows}-seed={seed}"
        if run in bench.lines:
            continue
        if weight is None:
            options: dict[str, Any] = {"d_sae": D_SAE, "k": K, "n_steps": args.steps, "seed": seed}
            options |= {"batch_size_rows": BATCH, "dead_after_tokens": 100_000, "device": "cpu"}
            output = str(args.output / "saes" / run)
            found = train_crosscoder(pair.stores, output=output, progress=False, overwrite=True, **options)
        else:
            found = l1_crosscoder(pair, weight, seed, args.steps, 1e-3)
        bench.add({"run": run, "kind": name, "seed": seed, **pair.scores(found)})


if __name__ == "__main__":
    main()
