"""Three options of training from papers, in plain torch: does one belong in the trainer? A JSON line per run.

    .venv/bin/python tests/bench/options.py planted --output runs/options   # planted features
    .venv/bin/python tests/bench/options.py model --output runs/options     # block 3 of stories3m-llama
    .venv/bin/python tests/bench/options.py report --output runs/options

    orthogonal  + γ/n Σᵢ maxⱼ≠ᵢ cos²(dᵢ, dⱼ) over chunks of latents drawn anew at each step (arXiv:2509.22033)
    bypass      x̂ = V Uᵀ(x − b_dec) + the TopK SAE of what is left, rank 24 (arXiv:2606.14040)
    aligned     ⟨encᵢ, decᵢ⟩ = 1, restored after each step (arXiv:2605.18629)

All learn from the same rows in the same order with Adam, unit decoder rows, the encoder starting as the
decoder's transpose, no auxiliary loss. Fixed beforehand: an option is kept where it is ahead of plain TopK in
a score that its paper names (orthogonal: absorption, F1; bypass: latents on more than 10 % of rows, ΔCE;
aligned: dead latents, fvu) by more than plain TopK's seeds differ, and behind in fvu by no more than 2 %.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from l1 import WORLDS, Bench, bench_parser, sums_over
from torch import Tensor, nn

import saelens_lite as sl
from saelens_lite.lm.store_losses import cross_entropies
from saelens_lite.sae.autoencoder import SAEOutput

CHUNK = 512
RANK = 24
OPTIONS = ("plain", "orthogonal=0.05", "orthogonal=0.25", "orthogonal=1", "aligned", "bypass")
DENSE_RATE = 0.1


class WithBypass(sl.SparseAutoencoder):
    """x̂ = V Uᵀ(x − b_dec) + the SAE's reconstruction of x − V Uᵀ(x − b_dec)."""

    U: Tensor
    V: Tensor

    def forward(self, acts: Tensor) -> SAEOutput:
        dense = (acts - self.b_dec) @ self.U @ self.V.T
        out = super().forward(acts - dense)
        return out._replace(recons=out.recons + dense)


def orthogonality(W_dec: Tensor, draw: torch.Generator) -> Tensor:
    """Mean over latents of the largest squared cosine with another row of the same chunk."""
    order = torch.randperm(len(W_dec), generator=draw)
    total = W_dec.new_zeros(())
    for chunk in order.split(CHUNK):
        rows = nn.functional.normalize(W_dec[chunk], dim=1)
        cosines = (rows @ rows.T).fill_diagonal_(0)
        total = total + cosines.square().amax(1).sum()
    return total / len(W_dec)


def train(rows: Callable[[int], Tensor], d_sae: int, k: int, steps: int, lr: float, seed: int, option: str):
    """The SAE of one run. rows: the batch of a step, float[batch d_model], of unit mean square"""
    name, _, strength = option.partition("=")
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    first = rows(0)
    d_model = first.shape[1]
    W_dec = nn.Parameter(nn.functional.normalize(torch.randn(d_sae, d_model), dim=1))
    W_enc = nn.Parameter(W_dec.detach().T.clone())
    b_enc, b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(first.mean(0))
    weights = [W_enc, W_dec, b_enc, b_dec]
    if name == "bypass":
        U = nn.Parameter(torch.linalg.svd(first - first.mean(0), full_matrices=False).Vh[:RANK].T.clone())
        V = nn.Parameter(U.detach().clone())
        weights += [U, V]
    adam = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (steps / 3))
    )
    for step in range(steps):
        x = rows(step)
        dense = (x - b_dec) @ U @ V.T if name == "bypass" else torch.zeros(())
        values, indices = torch.topk((x - dense - b_dec) @ W_enc + b_enc, k)
        codes = torch.zeros(len(x), d_sae).scatter(1, indices, values.relu())
        loss = (codes @ W_dec + b_dec + dense - x).square().sum(1).mean()
        if name == "orthogonal":
            loss = loss + float(strength) * x.shape[1] * orthogonality(W_dec, draw)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        with torch.no_grad():
            W_dec.copy_(nn.functional.normalize(W_dec, dim=1))
            if name == "aligned":
                W_enc.add_((1 - (W_enc * W_dec.T).sum(0)) * W_dec.T)
    sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=d_model, d_sae=d_sae, kind="topk", k=k))
    state = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    sae.load_state_dict({part: weight.detach() for part, weight in state.items()})
    if name == "bypass":
        sae.__class__ = WithBypass
        sae.U, sae.V = U.detach(), V.detach()
    return sae


def nearest_cosine(sae: sl.SparseAutoencoder) -> float:
    rows = nn.functional.normalize(sae.W_dec.detach(), dim=1)
    return (rows @ rows.T).fill_diagonal_(0).amax(1).mean().item()


def planted(bench: Bench, args: argparse.Namespace) -> None:
    config = sl.synthetic.SyntheticConfig(d_model=256, n_features=4096, l0=20, n_trees=32)
    world = sl.synthetic.SyntheticActivations(config)
    scale = torch.cat([acts for acts, _ in world.chunks(2**41, 4096)]).square().mean().sqrt()

    def rows(step: int) -> Tensor:
        return torch.cat([acts for acts, _ in world.chunks(1024 * step, 1024)]) / scale

    for seed, option in itertools.product(args.seeds, args.options or OPTIONS[:-1]):
        run = f"planted-{option}-steps={args.steps}-seed={seed}"
        if run in bench.lines:
            continue
        sae = train(rows, 1024, 20, args.steps, args.lr, seed, option)
        with torch.no_grad():  # biases back to the scale of the rows
            sae.b_enc.mul_(scale)
            sae.b_dec.mul_(scale)
        row = sl.ground_truth.evaluate_recovery(sae, world, n_rows=50_000).rows[0]
        names = ("mcc", "f1", "recovered", "absorption", "missed_alone", "fvu", "dead")
        scores = {name: getattr(row, name) for name in names}
        line = {"run": run, "part": "planted", "option": option, "seed": seed, "steps": args.steps, **scores}
        bench.add({**line, "nearest_cosine": nearest_cosine(sae)})


def model(bench: Bench, args: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM

    of = WORLDS["3m-3"]
    lm = AutoModelForCausalLM.from_pretrained(bench.args.shared / "models" / of.model)
    store, validation = bench.store("3m-3", "train"), bench.store("3m-3", "validation")
    all_rows = torch.cat([store.acts(shard).float() for shard in range(store.n_shards)])
    scale = all_rows.square().mean().sqrt()

    for seed, option in itertools.product(args.seeds, args.options or OPTIONS):
        run = f"model-{option}-steps={args.steps}-seed={seed}"
        if run in bench.lines:
            continue

        def rows(step: int, seed: int = seed) -> Tensor:
            draw = torch.Generator().manual_seed(1000 * seed + step)
            return all_rows[torch.randint(len(all_rows), (of.batch,), generator=draw)] / scale

        sae = train(rows, of.d_sae, 16, args.steps, args.lr, seed, option)
        with torch.no_grad():
            sae.b_enc.mul_(scale)
            sae.b_dec.mul_(scale)
        sums, firing = sums_over(sae, map(validation.acts, range(validation.n_shards)))
        how: dict[str, Any] = {"clean": None, "sae": {"sae": sae}}
        losses = cross_entropies(lm, validation, of.hook_point, how, fraction=None, max_tokens=20_000).ce
        rates = firing.density
        line: dict[str, Any] = {"run": run, "part": "model", "option": option, "seed": seed}
        line |= {"steps": args.steps, "fvu": sums.fvu, "delta_ce": losses["sae"] - losses["clean"]}
        line |= {"dense": int((rates > DENSE_RATE).sum()), "dead": float((rates == 0).double().mean())}
        bench.add({**line, "nearest_cosine": nearest_cosine(sae)})


def report(bench: Bench, args: argparse.Namespace) -> None:
    """Mean (least to largest) over seeds."""
    for part in ("planted", "model"):
        lines = [line for line in bench.lines.values() if line.get("part") == part]
        for option in dict.fromkeys(line["option"] for line in lines):
            mine = [line for line in lines if line["option"] == option]
            cells = []
            for name in [n for n in mine[0] if n not in ("run", "part", "option", "seed", "steps")]:
                found = [line[name] for line in mine]
                cells.append(f"{name} {sum(found) / len(found):.4g} ({min(found):.4g} – {max(found):.4g})")
            print(" | ".join([part, option, f"{len(mine)} seeds", *cells]))


def main() -> None:
    parser = bench_parser(__doc__, "options")
    parts = {"planted": planted, "model": model, "report": report}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--options", nargs="+", choices=OPTIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts[args.part](Bench(args), args)


if __name__ == "__main__":
    main()
