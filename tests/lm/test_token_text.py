"""Tokens that are part of a character: told apart by their bytes, however a vocabulary names these."""

from types import SimpleNamespace

import pytest

from saelens_lite.lm.token_text import spelled


def named(name):
    return SimpleNamespace(convert_ids_to_tokens=lambda token_id: name)


@pytest.mark.parametrize(
    ("name", "piece", "shown"),
    [
        ("<0xE2>", "", "⟨0xE2⟩"),
        ("<0xe2>", "�", "⟨0xE2⟩"),
        ("æ¼", "�", "⟨0xE6⟩⟨0xBC⟩"),  # two of the three bytes of 漢, E6 BC A2, in GPT-2's letters
        ("æ¼¢", "�", "漢"),
        ("Ġæ", " �", " ⟨0xE6⟩"),
        ("Ċ", "", "\n"),
        ("▁漢", "", "⟨token 5⟩"),  # no name of bytes
        (None, "�", "⟨token 5⟩"),
        ("any", "what is seen", "what is seen"),
    ],
)
def test_a_token_that_shows_nothing_of_itself_is_its_bytes(name, piece, shown):
    assert spelled(named(name), 5, piece) == shown


def test_all_bytes_of_a_byte_level_vocabulary_are_known(byte_tokenizer):
    shown = [spelled(byte_tokenizer, i, "") for i in range(3, 259)]
    expected = {chr(byte) if byte < 0x80 else f"⟨0x{byte:02X}⟩" for byte in range(256)}
    assert len(shown) == 256 and set(shown) == expected


def test_a_tokenizer_that_names_no_tokens_gives_the_id():
    assert spelled(SimpleNamespace(), 7, "�") == "⟨token 7⟩"
