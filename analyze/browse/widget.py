"""The feature browser in a notebook, as an anywidget; without widgets, an inert table.

Nothing of the data is a trait, so a saved notebook holds the browser's module and no more. The page asks by
messages and gets arrays as binary buffers; what takes the model's time runs in a thread of its own, so that
Stop arrives.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import cache
from typing import Any

from torch import nn

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..evaluation.result import Evaluation
from ..index.feature_index import FeatureIndex
from .answers import Answers
from .module import widget_module

_OF_THE_MODEL = ("text", "steer", "effect", "compare")
AHEAD = 2
"""Lines of a continuation that may be on their way to the page."""
_PATIENCE_S = 2.0


class FeatureBrowser:
    """The features of an index in a notebook: search, sort, label, scatter, and with a model type and steer.

        browser = FeatureBrowser("features.index", model, sae)
        browser                      # as the last line of a cell
        browser.selected             # the latent that is looked at
        browser.select(1234)
        browser.search("density<0.01 self")

    index: an index or its folder
    model, sae: for text of your own and steering; both or neither
    evaluation: one of the SAE, or its file: fvu and ΔCE are shown in the head

    Labels are saved in the index at once. Tried in JupyterLab 4.6 and in marimo 0.25, which shows
    `mo.ui.anywidget(browser.widget)`; VS Code and Colab are untried. While a continuation runs, the model is
    busy: other threads that call it get a HookError.
    raises: ValueError where SAE, model and index do not belong together
    """

    @names_misfits
    def __init__(
        self,
        index: FeatureIndex | str | os.PathLike[str],
        model: nn.Module | None = None,
        sae: SparseAutoencoder | None = None,
        *,
        evaluation: Evaluation | str | os.PathLike[str] | None = None,
    ) -> None:
        self.index = index if isinstance(index, FeatureIndex) else FeatureIndex.open(index)
        self._answers = Answers(self.index, model, sae, evaluation=evaluation)
        self._selected: int | None = None
        self._wanted: dict[str, Any] = {}
        self._runs: dict[str, _Run] = {}
        self._widget: Any = None

    @property
    def selected(self) -> int | None:
        """The latent that is looked at, None before the browser is shown."""
        return self._selected

    @names_misfits
    def select(self, latent: int) -> None:
        """Show a latent, as a click on it does. raises: ValueError for one out of range"""
        if not hasattr(latent, "__index__") or not 0 <= latent < len(self.index):
            raise ValueError(f"expected a latent from 0 to {len(self.index) - 1}, got {latent}")
        self._selected = int(latent)
        self._command("select", int(latent))

    @names_misfits
    def search(self, text: str) -> None:
        """Show what a search finds, as typed into the search box: "density<0.01 is:labelled self"."""
        if not isinstance(text, str):
            raise TypeError(f"expected text to search, got {type(text).__name__}")
        self._command("search", text)

    @property
    def widget(self) -> Any:
        """The anywidget itself. raises: ImportError without anywidget"""
        if self._widget is None:
            self._widget = _widget_class()()
            self._widget.on_msg(self._heard)
        return self._widget

    def _repr_html_(self) -> str:
        return self.index._repr_html_()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        inert = {"text/plain": repr(self), "text/html": self._repr_html_()}
        try:
            bundle = self.widget._repr_mimebundle_(**options)
        except ImportError:
            return inert
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        return ({**inert, **(data or {}), "text/html": inert["text/html"]}, *metadata)

    def __repr__(self) -> str:
        return f"FeatureBrowser({self.index!r})"

    def _command(self, name: str, value: Any) -> None:
        """Tell the page, or a page that is still to come."""
        self._wanted[name] = value
        if self._widget is not None:
            self._widget.send({"command": name, "value": value})

    def _heard(self, widget: Any, content: Any, buffers: Any) -> None:
        """A message of the page."""
        if not isinstance(content, dict):
            return
        if isinstance(content.get("selected"), int) and 0 <= content["selected"] < len(self.index):
            self._selected = content["selected"]
        elif isinstance(content.get("heard"), str):
            if run := self._runs.get(content["heard"]):
                run.heard()
        elif isinstance(content.get("stop"), str):
            if run := self._runs.get(content["stop"]):
                run.stop()
        elif isinstance(content.get("ask"), str) and isinstance(content.get("name"), str):
            asked = content["ask"], content["name"], content.get("params")
            if content["name"] in _OF_THE_MODEL:
                self._runs[content["ask"]] = _Run()
                threading.Thread(target=self._answer, args=asked, daemon=True).start()
            else:
                self._answer(*asked)
                if content["name"] == "start":
                    for name, value in self._wanted.items():
                        self.widget.send({"command": name, "value": value})

    def _answer(self, ask: str, name: str, params: Any) -> None:
        """Send the answer to a question, or why there is none."""
        try:
            found = self._answers.answer(name, params)
            if isinstance(found, bytes):
                self.widget.send({"ask": ask}, buffers=[found])
            elif isinstance(found, dict):
                self.widget.send({"ask": ask, "json": found})
            else:
                run = self._runs[ask]
                with contextlib.closing(found):  # type: ignore[type-var]
                    while run.wants_more() and (line := next(found, None)) is not None:
                        self.widget.send({"ask": ask, "line": line})
                self.widget.send({"ask": ask, "json": {}})
        except Exception as error:
            self.widget.send({"ask": ask, "error": str(error) or type(error).__name__})
        finally:
            self._runs.pop(ask, None)


class _Run:
    """A continuation on its way to the page: it waits where AHEAD of its lines are still to be drawn, so that
    Stop ends it within as many tokens. A cell that runs keeps the page from being heard; then it resumes
    after a while."""

    def __init__(self) -> None:
        self._room, self._stopped, self._waits = threading.Semaphore(AHEAD), threading.Event(), True

    def heard(self) -> None:
        """The page has drawn a line."""
        self._room.release()

    def stop(self) -> None:
        self._stopped.set()
        self._room.release()

    def wants_more(self) -> bool:
        """Whether a further line is wanted, once there is room for it."""
        self._waits = self._waits and self._room.acquire(timeout=_PATIENCE_S)
        return not self._stopped.is_set()


@cache
def _widget_class() -> type:
    try:
        import anywidget
    except ImportError as error:
        raise ImportError(
            "FeatureBrowser shows itself with anywidget, which is not installed: "
            "pip install 'saelens_lite[notebooks]'"
        ) from error

    class FeatureBrowserWidget(anywidget.AnyWidget):
        """The browser's module; all data are messages."""

        _esm = widget_module()

    return FeatureBrowserWidget
