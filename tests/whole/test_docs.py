"""What the pages say can be followed: links, citations in the code, and commands."""

import re
import shlex
import sys
import types
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pgtg.config.compose import composed
from pgtg.config.overrides import as_hydra
from pgtg.metrics import TextMetric
from tests.support.cases import some
from tests.support.tiny import tiny
from tests.support.tiny_models import batch, build

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CITED = re.compile(r'docs/(\w+)\.md,\s+"([^"]+)"')
PARAMETER = re.compile(r"[\w.]+=")
# those words of the glossary's last column that nothing else is called; names are words too
NOT_OURS = re.compile(
    r"(?<![a-z])(?:mend(?:s|ed|ing)?|anew|rulers?|lessons?|spoil(?:s|t|ed)?|laws?(?! \{)|beside|"
    r"go(?:es)? on|thanks|blames?|unknown make)(?![a-z])",
    re.IGNORECASE,
)
TEXTS = {
    "pgtg": (".py", ".yaml", ".js", ".css"),
    "conf": (".yaml",),
    "docs": (".md",),
    "benchmarks": (".py",),
}
OF_FOLDERS = ("run_dir=", "sweep_dir=", "hydra/", "hydra.")  # not keys of a run's config


def headings(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [found.strip() for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]


def anchor(heading: str) -> str:
    """As forges make it: words, digits and hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if part:
            assert part in map(anchor, headings(target)), link


def test_what_docstrings_cite_is_there():
    found = 0
    for file in [*(ROOT / "pgtg").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert file == Path(__file__) or not re.search(r"METHOD( deviation|,|\.md)", text), file
        for page, heading in CITED.findall(re.sub(r"\n\s*", " ", text)):
            assert heading in headings(ROOT / "docs" / f"{page}.md"), (file, page, heading)
            found += 1
    assert found >= 6


def test_the_configuration_page_is_the_yaml_files():
    spec = spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == made.page(), "make docs"
    keys = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    assert {"seed", "aggregator.temperature", "reward.fit.lr", "data.columns.source"} <= keys


@pytest.mark.parametrize("part", [*TEXTS, "."])
def test_the_words_are_the_glossarys(part: str):
    """In messages, help, docstrings, comments and names, in yaml files, and on the pages."""
    ends = TEXTS.get(part)
    files = [f for f in (ROOT / part).rglob("*") if f.suffix in ends] if ends else ROOT.glob("*.md")
    wrong = [
        f"{file.relative_to(ROOT)}:{number}: {found[0]}"
        for file in files
        if file.stem != "glossary"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if (found := NOT_OURS.search(line))
    ]
    assert wrong == []


def specs(block: int) -> list[Any]:
    """Those of a file of the page on extending."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    made: dict[str, Any] = {"__name__": f"plugin{block}"}
    sys.modules[made["__name__"]] = types.ModuleType(made["__name__"])  # dataclasses look there
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[block], made)
    return made["SPECS"]


def test_the_plugin_of_the_page_adds_what_it_says():
    judge, aggregator = specs(0)
    rewards, mask = torch.tensor([[1.0, 3.0, 2.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert aggregator.load()(rewards, mask, 2.0, False).tolist() == [2.0]
    assert judge.load()("regex", "default").name == "short"


def test_metric_head_method_and_task_of_the_page():
    metric, head, method, task = specs(1)
    words: TextMetric = metric.load()(None, "cpu")
    assert words.score(["two words", ""], [["a"], ["b"]]) == {"words": [2.0, 0.0]}
    lm = build("gpt2")
    assert head.load()(lm.width, None)(lm, batch()).shape == batch().tokens.shape
    rewards, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    options = method.options("sharper", [])
    assert_close(method.load().weigh(rewards, mask, options, 0), torch.tensor([[0.1, 0.9, 0.0]]))
    assert [*replace(options, power=0.0).problems()] == ["power: found 0.0, expected above 0"]
    assert task.name == "titles" and task.load()(tiny(), Path()).cfg == tiny()


def test_the_search_of_the_page_finds_the_word_that_helps():
    (method,) = specs(2)
    texts = [SimpleNamespace(label=0), SimpleNamespace(label=1)]
    task = SimpleNamespace(search=SimpleNamespace(labelled=lambda split: texts))
    cfg = SimpleNamespace(method=method.options("words", []))
    search = method.load().search(SimpleNamespace(task=task, cfg=cfg))
    sure = {"good": [[0.0, 0.0], [0.0, 1.0]], "bad": [[0.0, 1.0], [0.0, 1.0]], "film": [[0, 1]] * 2}
    while (question := search.ask()) is not None:
        texts_asked = [one.prompt.text for one in question.candidates]
        search.tell(np.array([sure[text.split()[0]] for text in texts_asked]))
        search.restore(search.state())
    assert search.best()[0].prompt.text == "good good" and cfg.method.asked() == (search.total, 0)


def test_the_front_page_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def commands(page: Path) -> list[str]:
    """The `pgtg train …` lines of a page's bash blocks, without what stands for something else."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    found = [line.removeprefix("pgtg train ") for line in lines if line.startswith("pgtg train ")]
    return [line for line in found if not any(word in line for word in ("…", "$", "--plugin"))]


@pytest.mark.parametrize("page", some(PAGES, *PAGES[:1]), ids=lambda page: page.stem)
def test_parameters_of_the_commands_are_taken(page: Path):
    for command in commands(page):
        task, *rest = shlex.split(command, comments=True)
        values = [w for w in rest if PARAMETER.match(w) and not w.startswith(OF_FOLDERS)]
        # of a sweep's values the first
        values = [v if "[" in v else v.partition(",")[0] for v in values]
        _, problems, _ = composed(task, [as_hydra(v) for v in values])
        assert problems == [], command


def test_no_install_line_would_fetch_anothers_package():
    """`pgtg` on PyPI is another project's name."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    files += [p for part in ("pgtg", "docs", "conf") for p in (ROOT / part).rglob("*.*")]
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.is_file() and path.suffix in (".py", ".md", ".yaml", ".toml", "")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(pip|uv|pipx) [a-z ]*install[^`]*[ '\"]pgtg(\[|['\"`, ]|$)", line)
    ]
    assert wrong == []
