"""A bar on a terminal, and nothing elsewhere."""

import io

from saelens_lite.progress import bar


def test_a_bar_is_silent_where_stderr_is_no_terminal(capsys):
    assert list(bar(range(3), "counting", "item")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_counts_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    assert list(bar(iter(range(3)), "counting", "item", total=3)) == [0, 1, 2]
    assert "counting" in shown.getvalue() and "3" in shown.getvalue()
