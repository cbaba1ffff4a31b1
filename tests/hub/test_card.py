"""The model card: numbers of evaluation.json in a table, settings, the way to load; data is no markup."""

from saelens_lite.hub.card import model_card
from saelens_lite.hub.published import PublishedSAE, published_saes, without_paths


def test_the_table_has_the_numbers_and_their_baseline(grid):
    card = model_card("someone/tiny", published_saes(grid), license="mit", page=True)
    lines = card.splitlines()
    assert lines[:6] == [
        "---",
        "library_name: saelens",
        "tags: [saelens, sparse-autoencoder, mechanistic-interpretability]",
        'license: "mit"',
        "---",
        "",
    ]
    start = lines.index("|  | fvu | l0 | ΔCE (nats) | dead@10k |")
    assert lines[start + 2 : start + 5] == [
        "| k=2 | 0.2500 | 2.0 | 0.1250 | 0.500 |",
        "| k=2: baseline | 0.7500 | 2.0 | 1.5000 | 0.250 |",
        "| zero ablation | 1.0000 | 0.0 | 3.0000 |  |",
    ]
    assert "Over 1,234 tokens of held-out documents" in card and "Not evaluated: k=4." in card
    assert 'SparseAutoencoder.load("someone/tiny", "k=2")' in card
    assert 'SAE.from_pretrained("someone/tiny", "k=2")' in card
    assert "| k | 2 | 4 |" in card and "| seed | 3 |" in card and "l1" not in card
    assert "[features.html](features.html)" in card and "ab" * 32 in card


def test_without_an_evaluation_the_card_says_so(grid):
    card = model_card("someone/tiny", published_saes(grid / "k=4"))
    assert "## Evaluation\n\nNot evaluated." in card and "license" not in card


def test_names_from_data_are_no_markup(tmp_path):
    cfg = {"metadata": {"model_name": 'own/er"\nlicense: evil', "hook_name": "x"}, "d_sae": 4}
    evaluation = {"rows": [{"name": "trained", "fvu": 0.5}, {"name": "<b>|x", "fvu": 1.0}]}
    card = model_card("a/b", [PublishedSAE("k", tmp_path, cfg, evaluation)])
    assert "\nlicense: evil" not in card.split("---")[1]
    assert "| k: \\<b>\\|x | 1.0000 |" in card


def test_paths_and_credentials_go():
    given = {"a": "/home/x/models/tiny", "b": ["https://user:secret@host/data?token=1", "gpt2"], "c": 1}
    assert without_paths(given) == {"a": "tiny", "b": ["https://host/data", "gpt2"], "c": 1}
