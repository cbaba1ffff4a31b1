"""Cut texts hold the tokens that are read, and no more."""

from saelens_lite.analyze.corpora.text_starts import text_starts
from saelens_lite.demo import load_model


def test_a_text_ends_with_its_last_token_that_is_read():
    model, tokenizer = load_model()
    text = "import os\nfor name in os.listdir('.'):\n    print(name)\n" * 40
    whole = tokenizer(text).input_ids
    for limit in (1, 5, 17):
        cut, short = text_starts(model, tokenizer, [text, "x"], limit)
        assert tokenizer(cut).input_ids == whole[:limit] and text.startswith(cut)
        assert short == ("x" if limit > 1 else short)
    longest = model.config.max_position_embeddings
    assert tokenizer(text_starts(model, tokenizer, [text])[0]).input_ids == whole[:longest]
