"""What a static page of the browser holds, read back as plain values."""

import base64
import gzip
import json
import re

import numpy as np
from safetensors.numpy import load

BEYOND = {2: 0xFFFF, 4: -1}
"""The id that stands for no token, by its bytes."""


def arrays(text):
    """The arrays of a part of a page, by name."""
    found = load(gzip.decompress(base64.b64decode(text)))
    return {name: rejoined(array) for name, array in found.items()}


def rejoined(array):
    """Of an array whose bytes stand in planes, all first bytes before all second ones."""
    planes = np.frombuffer(array.tobytes(), np.uint8).reshape(array.itemsize, -1)
    return np.frombuffer(planes.T.tobytes(), array.dtype).reshape(array.shape)


def parts_of(path):
    """The text of a page, and the base64 text of its parts by name, those beside it too."""
    page = path.read_text(encoding="utf-8")
    parts = dict(re.findall(r'<script id="part-(\w+)" type="text/plain">([^<]*)</script>', page))
    for file in path.with_suffix(".data").glob("*.js"):
        [(name, part)] = re.findall(r'^saelens_lite_part\("(\d+)","([^"]*)"\);\n$', file.read_text())
        parts[name] = part
    return page, parts


def read_page(path):
    """The head, with `table`, arrays by column, and `features`, a mapping for each latent with panels."""
    page, parts = parts_of(path)
    head = json.loads(re.search(r'<script id="data" type="application/json">([^<]*)</script>', page)[1])
    head["texts"] = {int(token): text for token, text in head["texts"].items()}
    table = arrays(parts.pop("table"))
    blocks = [arrays(parts[str(i)]) for i in range(len(parts))]
    found = [feature_of(block, i, table, head) for block in blocks for i in range(len(block["latents"]))]
    return head | {"table": table, "features": found}


def feature_of(block, i, table, head):
    latent = int(block["latents"][i])
    feature = {"id": latent, "fired": int(table["fired"][latent]), "max": float(table["max"][latent])}
    feature |= {name: float(block[name][i]) for name in ("first", "last")}
    filled = block["histogram"][i].nonzero()[0]
    feature["bins"] = [0, []]
    if len(filled):
        feature["bins"] = [int(filled[0]), block["histogram"][i][filled[0] : filled[-1] + 1].tolist()]
    feature["positions"] = block["positions"][i].tolist()
    feature["quantiles"] = block["quantiles"][i].tolist()
    for name in ("cosine", "jaccard", "pmi"):
        pairs = zip(block[f"{name}_ids"][i].tolist(), (block[name][i] / 1000).tolist(), strict=True)
        feature[name] = [pair for pair in pairs if pair[0] >= 0]
    if "promoted_ids" in block:
        for end, name in (("top", "promoted"), ("bottom", "demoted")):
            ids, logits = block[f"{name}_ids"][i].tolist(), block[f"{name}_logits"][i].tolist()
            feature[end] = list(zip(ids, logits, strict=True))
    common = zip(block["common"][i].tolist(), block["common_n"][i].tolist(), strict=True)
    feature["tokens"] = [int(block["sampled"][i]), [pair for pair in common if pair[1]]]
    feature["examples"] = [one for one in examples_of(block, i, "far", head["before"]) if one["value"] > 0]
    near = examples_of(block, i, "near", head["before_near"])
    names = ("low", "high", "within")
    feature["intervals"] = [
        [*(float(block[name][i, j]) for name in names), [e for e in near[5 * j : 5 * j + 5] if e["row"] >= 0]]
        for j in range(5)
    ]
    feature["contrast"] = [one for one in near[25:] if one["row"] >= 0]
    return feature


def examples_of(block, i, kind, before):
    """value, row, document, position; ids of the window; at, the place of its own token; acts by place, None
    on a token without a row."""
    starts = np.concatenate([[0], block[f"{kind}_firings"].astype(int).ravel().cumsum()])
    n, found = block[f"{kind}_row"].shape[1], []
    for j in range(n):
        ids = block[f"{kind}_tokens"][i, j]
        there = np.flatnonzero(ids != BEYOND[ids.dtype.itemsize])
        first = int(there[0]) if len(there) else 0
        span = slice(starts[i * n + j], starts[i * n + j + 1])
        acts = zip(block[f"{kind}_place"][span].tolist(), block[f"{kind}_act"][span].tolist(), strict=True)
        one = {
            name: block[f"{kind}_{name}"][i, j].item() for name in ("value", "row", "document", "position")
        }
        one |= {"ids": ids[there].tolist(), "at": before - first}
        one["acts"] = {place - first: None if act != act else act for place, act in acts}
        found.append(one)
    return found
