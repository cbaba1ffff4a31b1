"""Files in the form that SAEDashboard 0.8.0 writes, by hand; tests/peer/test_dashboard.py reads its own."""

import json

import pytest

from saelens_lite.analyze.exchange import import_index

NO_TABLES = {
    name: []
    for name in (
        "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
        "correlated_neurons_indices", "correlated_neurons_pearson",
        "correlated_features_indices", "correlated_features_pearson",
    )
}  # fmt: skip


def vis_feature(fired, groups):
    """fired: heights of its histogram; groups: (title, [(place in the prompt, activations)])"""
    table = {f"{end}_{of}": [] for end in ("top", "bottom") for of in ("token_ids", "logits")}
    histogram = {"bar_heights": fired, "bar_values": [0.5, 1.5], "tick_vals": [248711], "title": "A"}
    sequences = [
        {
            "title": title,
            "seq_data": [
                {
                    "original_index": 0, "qualifying_token_index": place,
                    "token_ids": list(range(10, 10 + len(acts))), "feat_acts": acts,
                    "token_logits": [0.0] * len(acts), "loss_contribution": [], "top_token_ids": [],
                }
                for place, acts in windows
            ],
        }
        for title, windows in groups
    ]  # fmt: skip
    more = {f"correlated_{of}_cossim": [] for of in ("neurons", "features")}
    return {
        "feature_tables_data": NO_TABLES | more | {"correlated_b_features_indices": []},
        "acts_histogram_data": histogram,
        "logits_histogram_data": {"bar_heights": [], "bar_values": [], "tick_vals": [], "title": None},
        "logits_table_data": table,
        "sequence_data": {"seq_group_data": sequences},
        "dfa_data": {},
    }


def vis(windows):
    """Of 200 tokens: latent 4 fires on 10, latent 9 on 40, of which the histogram leaves out 2 of a BOS,
    latent 11 on 2."""
    top = "TOP ACTIVATIONS<br>MAX = 2.000"
    groups = [(top, windows), ("INTERVAL 0.000 - 1.000<br>CONTAINS 0.100%", [])]
    features = {
        "4": vis_feature([6, 4], groups),
        "9": vis_feature([30, 8], []),
        "11": vis_feature([2, 0], []),
    }
    stats = {"max": [2.0, 1.5, 0.6], "frac_nonzero": [0.05, 0.2, 0.01], "quantile_data": [[], [], []]}
    return {"feature_data_dict": features, "feature_stats": stats}


def test_sae_vis_data(tmp_path):
    """The window's token is the middle one; how many tokens there were is what most latents imply."""
    (tmp_path / "vis.json").write_text(json.dumps(vis([(2, [0.0, 0.7, 2.0, 0.0, 0.0])])))
    index = import_index(tmp_path / "vis.json", tmp_path / "index")
    assert index.n_tokens == 200, "10 / 0.05 and 2 / 0.01; 38 / 0.2 = 190 is not what most say"
    assert index.column("counts")[[4, 9, 11]].tolist() == [10, 38, 2]
    [firing] = index[4].firings
    assert (firing.value, firing.before, firing.token) == (2.0, "<10><11>", "<12>")


def test_sae_vis_data_of_whole_prompts(tmp_path):
    """The window lacks the prompt's first token: place 4 of the prompt is the window's fourth token."""
    windows = [(4, [0.0, 0.0, 0.0, 2.0, 0.0]), (1, [1.5, 0.0, 0.0, 0.0, 0.0])]
    (tmp_path / "vis.json").write_text(json.dumps(vis(windows)))
    index = import_index(tmp_path / "vis.json", tmp_path / "index")
    assert [(firing.value, firing.token) for firing in index[4].firings] == [(2.0, "<13>"), (1.5, "<10>")]


def batch(*windows):
    """One latent; windows: (low, high, values, place that the file states)"""
    activations = [
        {
            "bin_min": low, "bin_max": high, "bin_contains": -1 if low == -1 else 0.25,
            "tokens": [f"t{i}" for i in range(len(values))], "values": values,
            "qualifying_token_index": place, "dfa_values": [], "dfa_maxValue": 0, "dfa_targetIndex": -1,
        }
        for low, high, values, place in windows
    ]  # fmt: skip
    lists = (
        "pos_str", "pos_values", "neg_str", "neg_values", "neuron_alignment_indices", "decoder_weights_dist",
        "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
        "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
        "correlated_features_l1", "correlated_features_pearson", "vector", "freq_hist_data_bar_values",
        "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    )  # fmt: skip
    feature = {name: [] for name in lists} | {"feature_index": 1, "frac_nonzero": 0.05}
    feature |= {"activations": activations, "n_prompts_total": 4, "n_tokens_in_prompt": 25, "dataset": "d"}
    return {"model_id": "m", "layer": 1, "sae_set": "s", "sae_id_suffix": None, "features": [feature]}


@pytest.mark.parametrize(
    ("windows", "found"),
    [
        # places in prompts: 1 lies in the window too, and is not the token meant; 17 lies outside
        (
            [(-1, 3.0, [0.0, 0.5, 3.0, 0.0, 0.0], 17), (-1, 3.0, [0.0, 0.0, 2.0, 0.5, 0.0], 1)],
            [(3.0, "t2"), (2.0, "t2")],
        ),
        # places in windows that end where the prompt ends
        (
            [(-1, 3.0, [0.0, 0.0, 0.5, 3.0], 3), (-1, 3.0, [2.0, 0.5, 0.0, 0.0], 0)],
            [(3.0, "t3"), (2.0, "t0")],
        ),
        # no place: the strongest
        (
            [(-1, 3.0, [0.0, 3.0, 0.5, 0.0], None), (-1, 3.0, [1.0, 0.5, 0.0, 0.0], None)],
            [(3.0, "t1"), (1.0, "t0")],
        ),
    ],
)
def test_a_batch(windows, found, tmp_path):
    (tmp_path / "batch-0.json").write_text(json.dumps(batch(*windows)))
    index = import_index(tmp_path / "batch-0.json", tmp_path / "index")
    assert index.n_tokens == 100 and index.column("counts").tolist() == [0, 5], "0.05 of 4 prompts of 25"
    assert [(firing.value, firing.token) for firing in index[1].firings] == found
