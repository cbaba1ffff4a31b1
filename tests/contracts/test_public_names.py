"""The public faces: what they hold, that it exists and is documented, and what became of older names."""

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest

import saelens_lite

ROOT = Path(__file__).parents[2]
NAMESPACES = """
analyze answers attribution browse corpora edits evaluation exchange ground_truth index latents lm
model_diffing pages
probing recipes stats store study synthetic
""".split()
NAMES_OF_0_1_0 = """
ActivationStore Answers CheckpointError FeatureIndex FeatureIndexError Fires HallucinationStudy
HookError IndexConfig NeutralText NextToken Record SAEConfig ShardError SparseAutoencoder
SparseLatents Split SyntheticActivations SyntheticConfig TrainConfig __version__ ablate
ablate_direction add_hook_points auroc benjamini_hochberg clamp cluster_bootstrap dead_latents
diff_mean direct_logit_attribution dose_response edge_ablation edge_attribution estimate_harvest
evaluate_sae feature_page feature_splitting fit_anomaly gradient_attribution harvest_activations
hook_points index_features label_absorption latent_density latent_stats logit_lens matched_latents
max_activating_tokens max_statistic_p meta_sae one_direction planted_absorption probe_direction
random_directions rank_p read_records report_page scale score_recovery select_latents span_mask
sparse_probes splice_sae steer steer_direction text_features train_grid train_sae train_streaming
""".split()


def stubs() -> dict[str, Path]:
    """The package of each stub, such as saelens_lite.train.rows, and the stub."""
    found = {}
    for top in ("saelens_lite", "harvest", "train", "analyze"):
        for path in sorted((ROOT / top).rglob("__init__.pyi")):
            folder = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
            found[folder if top == "saelens_lite" else f"saelens_lite.{folder}"] = path
    return found


EACH = pytest.mark.parametrize("package", stubs())


@EACH
def test_every_name_of_a_stub_exists_and_comes_from_the_file_it_names(package):
    face = importlib.import_module(package)
    for node in ast.parse(stubs()[package].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            home = importlib.import_module(f"{package}.{node.module}" if node.module else package)
            for alias in node.names:
                assert alias.asname == alias.name, "a re-export, for type checkers, is spelled `x as x`"
                assert getattr(face, alias.name) is getattr(home, alias.name)
    assert set(dir(face)) == set(face.__all__) - {"__version__"}


def undocumented(value: object, name: str) -> list[str]:
    """The name if it has no docstring, and its public methods that have none."""
    found = [] if inspect.getdoc(value) else [name]
    if inspect.isclass(value) and value.__module__.startswith("saelens_lite"):
        for key, member in vars(value).items():
            member = getattr(member, "__func__", member)
            if not key.startswith("_") and isinstance(member, types.FunctionType):
                found += undocumented(member, f"{name}.{key}")
    return found


@EACH
def test_every_public_name_is_documented(package):
    face = importlib.import_module(package)
    names = set(face.__all__) - {"__version__", "MODEL_DIR"}
    assert not [text for name in sorted(names) for text in undocumented(getattr(face, name), name)]


def test_the_top_holds_about_thirty_names_and_the_namespaces():
    modules = {name for name in saelens_lite.__all__ if inspect.ismodule(getattr(saelens_lite, name))}
    assert modules == set(NAMESPACES)
    assert 30 <= len(set(saelens_lite.__all__) - modules - {"__version__"}) <= 37


def test_there_were_seventy_names():
    assert len(set(NAMES_OF_0_1_0)) == 70


@pytest.mark.parametrize("name", sorted(set(NAMES_OF_0_1_0) - set(saelens_lite.__all__)))
def test_a_name_of_0_1_0_says_what_it_is_today(name):
    with pytest.raises(AttributeError, match=rf"^saelens_lite\.{name} is now saelens_lite\.") as told:
        getattr(saelens_lite, name)
    value = saelens_lite
    for part in str(told.value).rpartition(" is now saelens_lite.")[2].split("."):
        value = getattr(value, part)
    assert callable(value)


def test_the_changelog_lists_every_name_that_changed():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in set(NAMES_OF_0_1_0) - set(saelens_lite.__all__):
        with pytest.raises(AttributeError) as told:
            getattr(saelens_lite, name)
        today = str(told.value).rpartition(" is now saelens_lite.")[2]
        assert f"| `{name}` | `{today}` |" in changelog


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'train_sea'.*train_sae"):
        _ = saelens_lite.train_sea


HELD_ELSEWHERE = {
    "SparseAutoencoder": "check_acts normalize latent_acts encode encode_normalized encode_dense forward",
    "SparseLatents": "from_topk from_dense cat with_values",
    "TrainConfig": "expect",
    "HookPoint": "module width device",
    "PackedContexts": "up_to first",
    "LibraryVariants": "update",
}
"""Methods of hot paths, which check_acts guards, and those that only our own code calls."""


def names_its_misfits(function: types.FunctionType) -> bool:
    while Path(function.__code__.co_filename).name != "misfits.py":
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return False
    return True


def with_arguments(name: str, value: object) -> dict[str, types.FunctionType]:
    """A public function, or the public methods of a class, that take something from the caller."""
    if inspect.isfunction(value):
        return {name: value}
    if not inspect.isclass(value) or getattr(value, "_is_protocol", False):
        return {}
    called = {key: getattr(member, "__func__", member) for key, member in vars(value).items()}
    held = HELD_ELSEWHERE.get(name, "").split()
    return {
        f"{name}.{key}": function
        for key, function in called.items()
        if inspect.isfunction(function)
        and len(inspect.signature(function).parameters) > 1
        and (key in ("__getitem__", "__call__") or not key.startswith("_"))
        and key not in held
    }


@pytest.mark.parametrize("namespace", ["", *NAMESPACES])
def test_everything_public_names_the_argument_that_does_not_fit(namespace):
    face = getattr(saelens_lite, namespace) if namespace else saelens_lite
    names = getattr(face, "__all__", ["SyntheticActivations", "SyntheticConfig"])
    ours = {name: value for name in names if not inspect.ismodule(value := getattr(face, name))}
    found = {k: f for name, value in ours.items() for k, f in with_arguments(name, value).items()}
    assert [key for key, function in found.items() if not names_its_misfits(function)] == []
