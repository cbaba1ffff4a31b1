"""The judge of free answers beside the labels of 9,961 answers of gemma-2b-it to TriviaQA, in ../shared/data.

    .venv/bin/python tests/bench/judge_agreement.py > disagreements.jsonl

Prints a JSON line for each answer judged otherwise than it is labelled, and last one with agreement, κ and
counts.
"""

import gzip
import json
from pathlib import Path

from saelens_lite.analyze.study.judge import Judge

FILE = Path(__file__).resolve().parents[3] / "shared/data/corpora/triviaqa_gemma2b/answers.jsonl.gz"
VERDICT = {"error": "wrong", "correct": "correct", "refusal": "refused"}


def main() -> None:
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    judge, labels = Judge(), [VERDICT[row["label"]] for row in rows]
    found = judge.agreement([row["completion"] for row in rows], [row["answers"] for row in rows], labels)
    for i in found.differing:
        row = rows[i]
        said = judge.verdict(row["completion"], row["answers"])
        line = {"id": row["id"], "labelled": labels[i], "judged": said, "completion": row["completion"]}
        print(json.dumps(line | {"answers": row["answers"][:8]}, ensure_ascii=False))
    counts = {f"{said} / {labelled}": n for (said, labelled), n in sorted(found.counts.items())}
    total = {"n": len(rows), "agreement": found.share, "kappa": found.kappa, "judged / labelled": counts}
    print(json.dumps(total))


if __name__ == "__main__":
    main()
