"""Packing worked by hand, and token pieces."""

import random

import numpy as np
import pytest

from saelens_lite.lm.token_text import token_strings
from saelens_lite.store.packing import PackedContexts, pack

BOS, SEP = 1, 2
REPLACED = "\N{REPLACEMENT CHARACTER}"


def test_packing_by_hand():
    """Documents 10: 5 6 7 | 11: empty | 12: 8 9 3 4 in contexts of 4 that start with BOS.

    Document 10 fills the first context. Document 12 starts one, so it needs no separator; its last token goes
    on in the next, which padding fills.
    """
    packed = pack(
        [(10, [5, 6, 7]), (11, []), (12, [8, 9, 3, 4])],
        4,
        BOS,
        separator_id=SEP,
        special_ids=[1, 2],
        first_doc=10,
    )
    np.testing.assert_array_equal(packed.input_ids, [[1, 5, 6, 7], [1, 8, 9, 3], [1, 4, 0, 0]])
    np.testing.assert_array_equal(packed.attended, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(packed.kept, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(packed.doc_id, [[0, 0, 0, 0], [2, 2, 2, 2], [2, 2, -1, -1]])
    assert (packed.n_seqs, packed.n_rows, packed.first_doc) == (3, 7, 10)
    assert packed.input_ids.dtype == packed.doc_id.dtype == np.int32
    assert packed.attended.dtype == packed.kept.dtype == np.uint8


def test_a_document_inside_a_context_follows_a_separator():
    packed = pack([(0, [5]), (1, [6, 7])], 5, BOS, separator_id=SEP, special_ids=[1, 2])
    np.testing.assert_array_equal(packed.input_ids, [[1, 5, 2, 6, 7]])
    np.testing.assert_array_equal(packed.doc_id, [[0, 0, 1, 1, 1]])  # the separator belongs to what it opens
    np.testing.assert_array_equal(packed.kept, [[0, 1, 0, 1, 1]])


def test_documents_apart_share_no_context():
    """Documents 5 6 7 8 | empty | 9 | 3 4 in contexts of 4: each begins with BOS, none with a separator."""
    documents = [(0, [5, 6, 7, 8]), (1, []), (2, [9]), (3, [3, 4])]
    packed = pack(documents, 4, BOS, separator_id=SEP, special_ids=[1, 2], apart=True)
    np.testing.assert_array_equal(packed.input_ids, [[1, 5, 6, 7], [1, 8, 0, 0], [1, 9, 0, 0], [1, 3, 4, 0]])
    np.testing.assert_array_equal(packed.attended.sum(1), [4, 2, 2, 3])
    np.testing.assert_array_equal(packed.kept, [[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(
        packed.doc_id, [[0, 0, 0, 0], [0, 0, -1, -1], [2, 2, -1, -1], [3, 3, 3, -1]]
    )


def test_a_separator_may_take_the_last_position():
    packed = pack([(0, [5, 6]), (1, [7])], 4, BOS, separator_id=SEP)
    np.testing.assert_array_equal(packed.input_ids, [[1, 5, 6, 2], [1, 7, 0, 0]])


def test_without_bos_and_separator_text_runs_on():
    packed = pack([(0, [5, 6, 7]), (1, [8])], 3, None)
    np.testing.assert_array_equal(packed.input_ids, [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(packed.kept, [[1, 1, 1], [1, 0, 0]])


def test_special_tokens_in_text_have_no_row_unless_asked():
    documents = [(0, [5, 9, 6])]
    assert pack(documents, 4, BOS, special_ids=[1, 9]).kept.tolist() == [[0, 1, 0, 1]]
    assert pack(documents, 4, BOS).kept.tolist() == [[1, 1, 1, 1]]


def test_max_rows_begins_no_context_too_many():
    """Contexts of 4 hold 3 rows: 4 rows take two, although the document has 45 tokens; no further document is
    read."""

    def documents():
        yield 0, list(range(5, 50))
        raise AssertionError("read on")

    packed = pack(documents(), 4, BOS, special_ids=[1], max_rows=4)
    np.testing.assert_array_equal(packed.input_ids, [[1, 5, 6, 7], [1, 8, 9, 10]])


def test_nothing_packs_to_nothing():
    packed = pack([(0, [])], 4, BOS)
    assert packed.input_ids.shape == packed.doc_id.shape == (0, 4)
    assert packed.n_rows == 0


def test_every_token_is_packed_once():
    rng = np.random.default_rng(0)
    documents = [(i, rng.integers(3, 99, rng.integers(0, 40)).tolist()) for i in range(50)]
    packed = pack(documents, 16, BOS, separator_id=SEP, special_ids=[1, 2])
    kept = packed.kept.astype(bool)
    assert packed.input_ids[kept].tolist() == [token for _, tokens in documents for token in tokens]
    assert packed.doc_id[kept].tolist() == [i for i, tokens in documents for _ in tokens]
    assert (packed.input_ids[:, 0] == BOS).all()


@pytest.mark.property_check(8)
@pytest.mark.parametrize("text", ["plain text", "é漢字 and 😀!", "👩‍👩‍👧", "a\n\n b  c", ""])
def test_pieces_joined_are_the_text(byte_tokenizer, text):
    """With one token a byte, every other character is spread over tokens: the first one has it, the others
    are empty."""
    ids = byte_tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_strings(byte_tokenizer, ids)
    assert len(pieces) == len(ids) == len(text.encode())
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_an_emoji_is_the_piece_of_its_first_token(byte_tokenizer):
    ids = byte_tokenizer("a😀b")["input_ids"]
    assert token_strings(byte_tokenizer, ids) == ["<|bos|>", "a", "😀", "", "", "", "b"]


def test_a_window_cut_inside_a_character(byte_tokenizer):
    ids = byte_tokenizer("😀bc", add_special_tokens=False)["input_ids"]
    pieces = token_strings(byte_tokenizer, ids[2:])
    assert "".join(pieces[:2]).strip(REPLACED) == ""
    assert pieces[2:] == ["b", "c"]
    assert token_strings(byte_tokenizer, ids[:2])[0] == REPLACED


@pytest.mark.property_check(8)
def test_pieces_with_a_byte_fallback_vocabulary(shared_data):
    """A real SentencePiece-like vocabulary hides leading spaces and spells unknown characters by bytes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260k-llama")
    ids = tokenizer("Once 😀 漢字 time")["input_ids"]
    pieces = token_strings(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert {"<s>", "😀", "漢", "字"} <= set(pieces)
    assert "".join(token_strings(tokenizer, ids[2:])) == tokenizer.decode(ids[2:])


ALPHABETS = [
    "plain text, and more of it",
    "é漢字 and 😀!",
    "👩‍👩‍👧 🇩🇪 👍🏽 𝔘𝔫𝔦",
    "Привет, как дела? Ещё раз",
    "日本語のテキスト、中文文本。",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "e\u0301 n\u0303 \x00\x01 \ufeff \u200b",
    " a\n\n b\t c\r\n ",
]


@pytest.fixture(scope="module")
def bpe_tokenizer():
    """Byte-level BPE as GPT-2 has it, of 420 tokens: merges end inside characters, and go over their ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ALPHABETS * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture(scope="module")
def fallback_tokenizer():
    """BPE as Llama 2 has it: letters and a mark for spaces, and bytes for every other character."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(97, 123))]
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@pytest.fixture
def tokenizer(request):
    """The tokenizer of that name: made here, embedded, or one of the shared models."""
    if request.param.endswith("-llama"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            request.getfixturevalue("shared_data") / "models" / request.param
        )
    found = request.getfixturevalue(request.param)
    return found[1] if request.param == "embedded" else found


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


FALLBACK = ["fallback_tokenizer", "stories260k-llama", "stories3m-llama"]
EVERY = pytest.mark.parametrize(
    "tokenizer", ["byte_tokenizer", "bpe_tokenizer", "embedded", *FALLBACK], indirect=True
)


@pytest.mark.property_check(8)
@pytest.mark.parametrize("text", ALPHABETS)
@EVERY
def test_pieces_joined_are_the_decoded_text_of_every_vocabulary(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    pieces = token_strings(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == decoded(tokenizer, ids)
    assert "".join(pieces).endswith(text.lstrip(" "))
    assert not any(REPLACED in piece for piece in pieces), "every character is whole, on one of its tokens"


@pytest.mark.long
@pytest.mark.property_check(8)
@EVERY
def test_pieces_of_any_tokens_joined_are_what_they_decode_to(tokenizer):
    """Tokens drawn at random: bytes that make no character, half characters at either end, special tokens in
    between."""
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 12))]
        text, pieces = decoded(tokenizer, ids), token_strings(tokenizer, ids)
        # of a run with a byte that begins no character, byte fallback shows nothing: there our pieces say
        # more
        if "<0x00>" not in tokenizer.get_vocab() or REPLACED not in text:
            assert "".join(pieces) == text, (ids, pieces)


@pytest.mark.parametrize("tokenizer", FALLBACK, indirect=True)
def test_a_half_character_leaves_the_one_before_whole(tokenizer):
    """Byte fallback then decodes to replacement characters only, also for what was whole."""
    ids = tokenizer("漢字", add_special_tokens=False)["input_ids"]
    assert ids[-6:] == tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "漢字".encode()])
    assert token_strings(tokenizer, ids[-6:-1]) == ["漢", "", "", REPLACED, REPLACED]
    assert token_strings(tokenizer, ids[-6:-2]) == ["漢", "", "", REPLACED]


def test_up_to_ends_at_the_context_of_its_last_row():
    """Contexts of 2, 0, 1 and 2 rows. Two rows fill the first: the second is not wanted."""
    kept = np.array([[0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=np.uint8)
    packed = PackedContexts(np.arange(12).reshape(4, 3), np.ones_like(kept), kept, np.zeros((4, 3), int), 0)
    assert [packed.up_to(n).n_seqs for n in range(7)] == [0, 1, 1, 3, 4, 4, 4]
    assert packed.up_to(3).input_ids.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
