"""An own classification task: one yaml file and some rows, no code."""

import csv
from pathlib import Path

import yaml

from pgtg.config.compose import run_config
from pgtg.tasks.prompt import PromptTask

MINE = {
    "name": "files",
    "path": None,
    "subset": None,
    "revision": None,
    "splits": {},
    "columns": {"id": None, "source": "text", "references": []},
    "limit": {"train": None, "dev": None, "test": None},
    "newswire": None,
    "reviews": None,
    "fewshot": {
        "labels": ["ham", "spam", "news"],
        "text": ["mail"],
        "label": "kind",
        "shots": 2,
        "folders": ["."],
        "masked": {
            "prompt": {
                "template": "{sentence} {prompt} {mask} .",
                "rendering": "string",
                "words": [" ham", " spam", " news"],
            }
        },
        "causal": {},
    },
}


def test_one_yaml_is_a_task(tmp_path: Path):
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    text = "# @package data\n# Mails.\n" + yaml.safe_dump(MINE | {"path": str(tmp_path / "rows")})
    (tmp_path / "conf" / "dataset" / "mails.yaml").write_text(text)
    (tmp_path / "rows").mkdir()
    for split in ("train", "dev"):
        with (tmp_path / "rows" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["mail", "kind"])
            for kind in ("ham", "spam", "news"):
                rows.writerows([[f"{split} of {kind}, {i}", kind] for i in range(2)])
    mine = ["dataset=mails", "policy=distilgpt2", "judge=classifier", "judge.classifier.path=a/b"]
    cfg = run_config("prompt", ["experiment=none", *mine], config_dir=tmp_path / "conf")
    task = PromptTask(cfg, tmp_path)
    task.read()
    train = task.labelled("train") or []
    assert [row.label for row in train] == [0, 0, 1, 1, 2, 2]
    assert train[0].text == "train of ham, 0" and task.labelled("test") is None
