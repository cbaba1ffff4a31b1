"""Transcoders trained on two places of one store: gradients, units, resuming, processes, what is refused."""

import json

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.transcoder import Transcoder
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds import jumprelu
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.kinds.kind import unit_rows_
from saelens_lite.train.optimise.fold import fold_pair
from saelens_lite.train.rows.pair_rows import PairRows
from saelens_lite.train.transcoders import TranscoderConfig, train_transcoder

B, D, N, K = 29, 12, 64, 5
N_ROWS, WIDTH = 6000, 8
FIELDS = {"k": 4, "d_sae": 48, "n_steps": 12, "batch_size_rows": 256, "progress": False, "device": "cpu"}


def kind_of(name, skip, d_out=D, **fields):
    """A kind around a transcoder of random parameters, in float64."""
    config = TrainConfig(kind=name, k=K, k_aux=6, **fields)
    cls = kind_class(name)
    transcoder = Transcoder(
        SAEConfig(
            d_model=D, d_sae=N, kind=cls.sae_kind, k=K if cls.sae_kind == "topk" else None, dtype="float64",
            apply_b_dec_to_input=False, target=Target(d_model=d_out, skip=skip),
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        unit_rows_(transcoder.W_dec)
        if cls.sae_kind == "jumprelu":
            transcoder.threshold.abs_()
    return cls(transcoder, config)


def rows_of(d_out=D):
    return torch.randn(B, D + d_out, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(kind, rows, dead):
    """mean ‖y − recons‖² + aux_coeff · AuxK, from the definition: recons = z W_dec + b_dec + x W_skipᵀ."""
    sae, (x, y) = kind.sae, rows.split([D, rows.shape[1] - D], dim=1)
    pre_acts = x @ sae.W_enc + sae.b_enc
    if kind.config.kind == "topk":
        largest = pre_acts.relu().topk(K, dim=1)
        z = torch.zeros_like(pre_acts).scatter(1, largest.indices, largest.values)
    elif kind.config.kind == "batchtopk":
        flat = pre_acts.relu().flatten().topk(K * B)
        z = torch.zeros(B * N, dtype=rows.dtype).scatter(0, flat.indices, flat.values).view(B, N)
    else:
        z = pre_acts * (pre_acts > sae.threshold)
    recons = z @ sae.W_dec + sae.b_dec
    if sae.config.target.skip:
        recons = recons + x @ sae.W_skip.T
    loss = (y - recons).square().sum(1).mean()
    if len(dead):
        left, weak = (y - recons).detach(), pre_acts[:, dead].relu().topk(6, dim=1)
        few = torch.zeros(B, len(dead), dtype=rows.dtype).scatter(1, weak.indices, weak.values)
        loss = loss + kind.config.aux_coeff * (left - few @ sae.W_dec[dead]).square().sum(1).mean()
    return loss


@pytest.mark.parametrize("d_out", [D, 7])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("case", ["topk", "batchtopk", "jumprelu", "jumprelu, sparse"])
def test_gradients_equal_autograds(case, skip, d_out, monkeypatch):
    name = case.partition(",")[0]
    kind = kind_of(name, skip, d_out, **({} if name == "jumprelu" else {"aux_coeff": 0.25}))
    monkeypatch.setitem(jumprelu.few_pairs.__globals__["SPARSE_BELOW"], "cpu", float("sparse" in case))
    dead = torch.tensor([3, 5, 8, 13, 21, 34, 55]) if kind.uses_dead else torch.tensor([], dtype=torch.int64)
    learned = ("W_enc", "W_dec", "b_enc", "b_dec", *(["W_skip"] if skip else []))
    parameters = [kind.sae.get_parameter(of) for of in learned]
    loss = loss_of(kind, rows_of(d_out), dead)
    wanted = dict(zip(learned, torch.autograd.grad(loss, parameters), strict=True))
    wanted["W_dec"] = remove_parallel(wanted["W_dec"], kind.sae.W_dec.detach())
    with torch.no_grad():
        stats, _ = kind.gradients(rows_of(d_out), dead if kind.uses_dead else None, 1.0)
    for of in learned:
        got = kind.sae.get_parameter(of).grad
        assert_close(got, wanted[of], rtol=1e-8, atol=1e-8, msg=lambda said, of=of: f"{of}: {said}")
    if name == "topk":
        with torch.no_grad():
            error = (rows_of(d_out)[:, D:] - kind.sae(rows_of(d_out)[:, :D]).recons).square().sum(1).mean()
        assert_close(stats.reconstruction, error, rtol=1e-12, atol=0)


def test_scales_and_centre_are_folded_so_that_the_whole_stays_the_same():
    """In other units by hand: x = centre + x' / s_in, y = y' / s_out."""
    kind, (s_in, s_out) = kind_of("jumprelu", True), (0.2, 30.0)
    centre = 50 * torch.randn(D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = rows_of()[:, :D]
    with torch.no_grad():
        folded = fold_pair(kind.sae, (s_in, s_out), centre)
        want, got = kind.sae(s_in * (x - centre)), folded(x)
    assert_close(got.recons * s_out, want.recons, rtol=1e-9, atol=1e-9)
    assert_close(got.latents.to_dense() * s_out, want.latents.to_dense(), rtol=1e-9, atol=1e-9)
    assert torch.equal(folded.W_dec, kind.sae.W_dec)
    assert_close(folded.W_skip, kind.sae.W_skip * (s_in / s_out), rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """x about 20 away from 0; y an affine map of it and a small MLP's part, in units 100 times as large."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    x = randn(N_ROWS, WIDTH)
    y = 100 * ((x @ randn(WIDTH, 24)).relu() @ randn(24, WIDTH) / 8 + x @ randn(WIDTH, WIDTH) + 3)
    rows = {"blocks.1.mlp.hook_in": x + 20, "blocks.1.hook_mlp_out": y}
    folder = tmp_path_factory.mktemp("pair") / "store"
    return sl.ActivationStore.from_arrays(folder, rows, documents=torch.arange(N_ROWS) // 20)


def train(store, output, **fields):
    places = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    return train_transcoder(store, *places, output=str(output), **FIELDS | fields)


def test_rows_are_those_of_two_places_in_scales_of_their_own(store):
    config = TranscoderConfig(hook_point="blocks.1.mlp.hook_in")
    rows = PairRows(store, config, "blocks.1.hook_mlp_out", skip=True)
    x, y = (store.acts(0, point).double() for point in store.hook_points)
    if store.hook_points[0] != "blocks.1.mlp.hook_in":
        x, y = y, x
    for scale, side in zip(rows.pair.scales, (x, y), strict=True):
        distance = float((side - side.mean(0)).square().sum(1).mean())
        assert scale == pytest.approx((WIDTH / distance) ** 0.5, rel=1e-6)
    # a median of symmetric rows is near their mean: 20 ± 1 / sqrt(6000) · some
    assert_close(rows.pair.centre, torch.full((WIDTH,), 20.0), rtol=0, atol=0.1)
    batch = rows.batch(0)
    assert batch.shape == (config.batch_size_rows, 2 * WIDTH)
    assert float(batch[:, :WIDTH].mean().abs()) < 0.1 and rows.d_model == WIDTH
    assert rows.scale == pytest.approx(1, rel=1e-5)
    gammas = [float(s.mean(0).norm() / (s - s.mean(0)).square().sum(1).mean().sqrt()) for s in (x, y)]
    assert rows.pair.mean_to_spread == pytest.approx(gammas, rel=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_it_starts_at_the_target_median_and_reads_centred_rows(store, tmp_path, skip):
    """At a learning rate of almost 0, nothing but the start is saved: b_dec is the median of the target."""
    got = train(store, tmp_path / "t", skip=skip, n_steps=1, lr=1e-12)
    y = store.acts(0, "blocks.1.hook_mlp_out")
    median = got.b_dec + (got.W_skip @ torch.full((WIDTH,), 20.0) if skip else 0)
    assert_close(median, y.median(0).values, rtol=0.15, atol=15.0)
    assert_close(got.W_dec.norm(dim=1), torch.ones(48), rtol=1e-5, atol=0)
    x = store.acts(0, "blocks.1.mlp.hook_in")
    assert float((got.pre_acts(x) > 0).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.long
def test_the_skip_takes_the_affine_part(store, tmp_path):
    """The target is mostly affine: with a skip less than half of the error is left."""
    fields = {"n_steps": 300, "d_sae": 32}
    without, with_skip = (train(store, tmp_path / str(skip), skip=skip, **fields) for skip in (False, True))
    fvu = [t.config.metadata["saelens_lite"]["held_out_fvu"] for t in (without, with_skip)]
    x, y = (store.acts(0, p) for p in ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"))
    for transcoder, reported in zip((without, with_skip), fvu, strict=True):
        with torch.no_grad():
            error = (transcoder(x).recons - y).square().sum() / (y - y.mean(0)).square().sum()
        assert float(error) == pytest.approx(reported, rel=0.15)
    assert fvu[1] < fvu[0] / 2 < 0.2


@pytest.mark.parametrize(("kind", "skip"), [("topk", False), ("batchtopk", True), ("jumprelu", True)])
def test_a_stopped_one_resumes_bit_for_bit_and_a_finished_one_is_returned(
    store, tmp_path, monkeypatch, stop_after, kind, skip
):
    fields = {"kind": kind, "skip": skip, "checkpoint_every_steps": 4}
    fields |= {"k": None, "target_l0": 4.0} if kind == "jumprelu" else {}
    whole = train(store, tmp_path / "whole", **fields)
    log = (tmp_path / "whole/metrics.jsonl").read_bytes()
    again = train(store, tmp_path / "whole", **fields)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == log

    stop_after(7)
    with pytest.raises(SystemExit):
        train(store, tmp_path / "stopped", **fields)
    as_it_stood = Transcoder.load(tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(store, tmp_path / "stopped", **fields)
    assert not torch.equal(as_it_stood.W_enc, resumed.W_enc)
    assert as_it_stood.target.skip is skip
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.dist
def test_two_processes_train_the_transcoder_of_one(store, tmp_path, ranks):
    words = ["-m", "saelens_lite.train", "--store", str(store.path), "--hook-point", "blocks.1.mlp.hook_in"]
    words += ["--target-hook-point", "blocks.1.hook_mlp_out", "--skip", "--no-progress", "--n-steps=20"]
    words += ["--k=4", "--d-sae=48", "--batch-size-rows=256", "--device=cpu", "--lr=1e-3"]
    processes = ranks(2, *words, "--output", str(tmp_path / "two"))
    one = train(store, tmp_path / "one", skip=True, n_steps=20, lr=1e-3)
    code, output = processes.communicate(timeout=180)
    assert code == 0, output
    assert output.count("skip-transcoder of 48 latents, blocks.1.mlp.hook_in → blocks.1.hook_mlp_out") == 1
    two = Transcoder.load(tmp_path / "two")
    for name, parameter in one.named_parameters():
        scale = float(parameter.detach().abs().max())
        assert_close(two.get_parameter(name), parameter, rtol=1e-4, atol=1e-4 * scale, msg=name)


def test_another_target_or_skip_is_another_run(store, tmp_path):
    train(store, tmp_path / "t", n_steps=2)
    with pytest.raises(ValueError, match="skip expected False, got True"):
        train(store, tmp_path / "t", n_steps=2, skip=True)
    with pytest.raises(ValueError, match="expected an SAE, got a transcoder of 8 to 8"):
        sl.train_sae(store, hook_point="blocks.1.hook_mlp_out", output=str(tmp_path / "t"), **FIELDS)


def test_saved_folders_have_the_names_of_saelens(store, tmp_path):
    for kind, skip, name in (
        ("batchtopk", False, "jumprelu_transcoder"),
        ("jumprelu", True, "jumprelu_skip_transcoder"),
    ):
        k = {"k": 4} if kind == "batchtopk" else {"k": None}
        train(store, tmp_path / name, kind=kind, skip=skip, n_steps=2, **k)
        cfg = json.loads((tmp_path / name / "cfg.json").read_text())
        assert (cfg["architecture"], cfg["d_in"], cfg["d_out"]) == (name, WIDTH, WIDTH)
        assert cfg["apply_b_dec_to_input"] is False


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "relu"}, "kind expected one of .*'jumprelu'"),
        ({"kind": "gated"}, "for a transcoder"),
        ({"baseline": True}, "baseline expected False for a transcoder"),
        ({"init_from": "some", "d_sae": None}, "init_from expected None for a transcoder"),
        ({"latent_shards": 2}, "latent_shards expected 1 for a transcoder"),
        ({"n_stepz": 3}, "n_stepz"),
    ],
)
def test_what_transcoders_do_not_take_is_refused_before_training(store, tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        train(store, tmp_path / "t", **fields)
    assert not (tmp_path / "t").exists()


def test_one_place_for_both_is_refused(store, tmp_path):
    point = "blocks.1.hook_mlp_out"
    with pytest.raises(ValueError, match="expected two hook points"):
        train_transcoder(store, point, point, output=str(tmp_path / "t"), **FIELDS)
    with pytest.raises(ValueError, match=r"blocks\.2\.hook_mlp_out"):
        train_transcoder(store, point, "blocks.2.hook_mlp_out", output=str(tmp_path / "t"), **FIELDS)
