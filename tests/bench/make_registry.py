"""Writes saelens_lite/sae/releases.json.xz from the table of releases in sae-lens' wheel.

usage: .venv-peers/bin/python tests/bench/make_registry.py

It takes what opening an SAE needs: release, repository, model, loader, and of each SAE its id, its path, l0
and the scale of its input. The table is MIT-licensed; the notice goes with the data.
"""

import json
import lzma
from importlib.metadata import distribution
from pathlib import Path

import yaml

OUTPUT = Path(__file__).parents[2] / "saelens_lite" / "sae" / "releases.json.xz"


def main() -> None:
    wheel = distribution("sae-lens")
    files = {file.name: Path(str(file.locate())) for file in wheel.files or ()}
    table = yaml.load(files["pretrained_saes.yaml"].read_text(), Loader=yaml.CSafeLoader)
    releases = {
        name: {
            "repo": release["repo_id"],
            "model": release["model"],
            "loader": release["conversion_func"] or "sae_lens",
            "overrides": release.get("config_overrides") or {},
            "saes": [
                [sae["id"], sae["path"], sae.get("l0"), sae.get("norm_scaling_factor")]
                for sae in release["saes"]
            ],
        }
        for name, release in sorted(table.items())
    }
    data = {
        "from": f"sae-lens {wheel.version}",
        "licence": files["LICENSE"].read_text(),
        "releases": releases,
    }
    OUTPUT.write_bytes(lzma.compress(json.dumps(data).encode(), preset=9 | lzma.PRESET_EXTREME))
    n_saes = sum(len(release["saes"]) for release in releases.values())
    print(f"{OUTPUT}: {len(releases)} releases, {n_saes} SAEs, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
