"""Reports: numbers recomputed from per-example files, rows, baselines, refusals, the command."""

import csv
import hashlib
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.errors import ArtifactError, ConfigError
from pgtg.report import collect
from pgtg.report.build import Report, build, load
from pgtg.report.poster import published
from pgtg.report.tables import tables
from pgtg.report.write import report
from pgtg.runs.folder import RunFolder, read_json, read_jsonl, write_json, write_jsonl
from tests.support.report_runs import config, make_run

N = 20


def scores(seed: int, shift: float = 0.0, n: int = N) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    columns = {"rougeLsum": rng.normal(50 + shift, 5, n), "fact_accuracy": rng.normal(30, 9, n)}
    return {name: values.tolist() for name, values in columns.items()}


@pytest.fixture(scope="module")
def made_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two aggregators and MLE, three seeds each; start and uniform do not depend on them."""
    tmp_path = tmp_path_factory.mktemp("made")
    for seed in range(3):
        shared = {"start": scores(100 + seed, -9), "uniform": scores(200 + seed)}
        for place, name in enumerate(["avg", "max"]):
            systems = {**shared, "pgtg": scores(10 * place + seed, 6.0 * place)}
            folder = tmp_path / "sweep" / f"aggregator={name},seed={seed}"
            make_run(folder, systems, seed=seed, aggregator__name=name)
        systems = {"start": shared["start"], "mle": shared["uniform"]}
        folder = tmp_path / "sweep" / f"method=mle,seed={seed}"
        make_run(folder, systems, seed=seed, method={"name": "mle", "controls": []})
    return tmp_path / "sweep"


@pytest.fixture
def sweep(made_sweep: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(made_sweep, tmp_path / "sweep"))


def built(*places: Path, split: str | None = None, **how: Any) -> Report:
    runs, left_out = load(places, split)
    return build(runs, left_out, resamples=199, **how)


def test_numbers_are_those_of_the_per_example_files(sweep: Path, tmp_path: Path):
    """The few lines below know nothing of pgtg: they read what lies in the run folders."""
    report([sweep], tmp_path / "out", baseline="method=mle")
    for line in csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()):
        key, _, name = line["row"].partition("=")
        folders = sorted(sweep.glob(f"{key}={name},*" if name else "aggregator=avg,*"))
        if line["row"].startswith("method=pgtg"):
            aggregator = line["row"].split("aggregator=")[1]
            folders = sorted(sweep.glob(f"aggregator={aggregator},*"))
        elif line["row"].startswith("method=mle"):
            folders = sorted(sweep.glob("method=mle,*"))

        def per_example(folder: Path, system: str, metric: str = line["metric"]) -> list[float]:
            file = folder / "eval/test" / system / "samples_greedy.jsonl"
            return [json.loads(row)["scores"][metric] for row in file.read_text().splitlines()]

        ours = [per_example(folder, line["system"]) for folder in folders]
        means = [sum(row) / len(row) for row in ours]
        assert float(line["mean"]) == pytest.approx(sum(means) / 3, rel=1e-12)
        assert float(line["sd"]) == pytest.approx(statistics.stdev(means), rel=1e-9)
        half = 4.302652729749464 * statistics.stdev(means) / 3**0.5  # t of 2 degrees, two-sided 5 %
        assert float(line["high"]) == pytest.approx(sum(means) / 3 + half, rel=1e-9)
        if line["difference"]:
            theirs = [per_example(f, "mle") for f in sorted(sweep.glob("method=mle,*"))]
            mean = [
                sum(a[i] - b[i] for a, b in zip(ours, theirs, strict=True)) / 3 for i in range(N)
            ]
            assert float(line["difference"]) == pytest.approx(sum(mean) / N, rel=1e-9)
            effect = sum(mean) / N / statistics.stdev(mean) if any(mean) else 0.0
            assert float(line["effect"]) == pytest.approx(effect, rel=1e-9)


def test_rows_groups_and_shared_controls(sweep: Path):
    made = built(sweep)
    labels = [row.label for row in made.rows]
    avg, peak = "method=pgtg aggregator=avg", "method=pgtg aggregator=max"
    assert sorted(labels[:3]) == ["method=mle aggregator=avg", avg, peak]
    assert labels[3:] == ["uniform", "start"]  # the same texts in every group: one row each
    assert all(list(row.systems) == ["0", "1", "2"] for row in made.rows)
    assert made.baseline is not None and made.baseline.label == "method=mle aggregator=avg"


def test_planted_difference_is_found_and_the_same_texts_are_not(sweep: Path):
    made = built(sweep, baseline="method=mle")
    by_row = {r.row.label: r for r in made.results if r.metric == "rougeLsum"}
    planted = by_row["method=pgtg aggregator=max"].comparison
    same = by_row["uniform"].comparison
    assert planted is not None and planted.verdict == "higher" and planted.seeds_above == 3
    assert same is not None and (same.difference, same.p_holm) == (0.0, 1.0)
    assert same.verdict == "no difference shown"


def test_reading_changes_no_run_folder(sweep: Path, tmp_path: Path):
    def state() -> dict[str, str]:
        files = (path for path in sorted(sweep.rglob("*")) if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    report([sweep], tmp_path / "out")
    assert state() == before


def test_same_reports_twice_are_the_same_bytes(sweep: Path, tmp_path: Path):
    for out in ("a", "b"):
        report([sweep], tmp_path / out, metrics=["rougeLsum"])
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert {"report.md", "report.tex", "report.csv", "report.json", "report.html"} <= set(
        map(str, files)
    )
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_data_seeds_are_replicates_as_well(tmp_path: Path):
    for seed in (0, 13):
        make_run(tmp_path / str(seed), {"pgtg": scores(seed)}, data_seed=seed)
    (row,) = built(tmp_path).rows
    assert list(row.systems) == ["0/0", "0/13"]


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0, 0, 0)], ids=["of their own", "one"])
def test_folds_are_replicates_with_texts_of_their_own(seeds: tuple[int, ...], tmp_path: Path):
    for fold, seed in enumerate(seeds):
        texts: dict[str, Any] = {
            "data": f"fold {fold}",
            "ids": f"fold{fold}-{{}}",
            "data__validation_fold": fold,
        }
        ours, other = ([50.0 + fold + i + up for i in range(3 + fold)] for up in (2.0, 0.0))
        systems = {"pgtg": {"rougeLsum": ours}, "uniform": {"rougeLsum": other}}
        texts |= {"split": "validation"}
        make_run(tmp_path / f"fold{fold}", systems, seed=seed, **texts)
    made = build(*load([tmp_path], None), baseline="uniform")
    assert [row.label for row in made.rows] == ["pgtg", "uniform"] and made.examples == 3 + 4 + 5
    found = made.results[0].comparison
    assert found is not None and (found.seeds, found.examples) == (3, 12)
    assert found.difference == pytest.approx(2.0)
    make_run(tmp_path / "other", systems, seed=9, **{**texts, "data": "something else"})
    with pytest.raises(ConfigError, match="data differs"):
        build(*load([tmp_path], None))


def test_a_test_split_is_the_same_for_all_folds(tmp_path: Path):
    for fold in range(3):
        systems = {"pgtg": scores(fold), "uniform": scores(fold + 9)}
        make_run(tmp_path / f"fold{fold}", systems, data__validation_fold=fold)
    made = build(*load([tmp_path], None), baseline="uniform")
    found = made.results[0].comparison
    assert found is not None and (found.seeds, found.examples) == (3, made.examples)
    make_run(tmp_path / "fold3", systems, data__validation_fold=3, data="something else")
    with pytest.raises(ConfigError, match="data differs"):
        build(*load([tmp_path], None))


def test_label_names_as_few_keys_as_tell_groups_apart(tmp_path: Path):
    make_run(tmp_path / "a", {"pgtg": scores(0)}, aggregator={"name": "avg", "temperature": 2.0})
    make_run(tmp_path / "b", {"pgtg": scores(1)}, aggregator={"name": "max", "temperature": 1.0})
    made = built(tmp_path)
    assert [row.label for row in made.rows] == ["aggregator=avg", "aggregator=max"]
    assert made.rows[1].config == {"aggregator.name": "max", "aggregator.temperature": "1.0"}


def test_an_option_of_another_method_is_not_named_and_a_folder_of_the_seeds_own_is_one(
    tmp_path: Path,
):
    dpo = {"name": "dpo", "beta": 0.1}
    for seed in (0, 1):
        rto = {"name": "rto", "dpo": f"runs/method=dpo,seed={seed}"}
        make_run(tmp_path / f"a{seed}", {"rto": scores(seed)}, seed=seed, method=rto)
        make_run(tmp_path / f"b{seed}", {"dpo": scores(seed)}, seed=seed, method=dpo)
        more = {"dpo": scores(seed + 5)}
        make_run(tmp_path / f"c{seed}", more, seed=seed, method={**dpo, "beta": 1.0})
    found = {row.label: len(row.systems) for row in built(tmp_path).rows}
    assert found == {
        "method=dpo method.beta=0.1": 2,
        "method=dpo method.beta=1.0": 2,
        "method=rto": 2,
    }


def test_a_copy_of_a_run_counts_once_and_a_contradiction_is_refused(tmp_path: Path):
    make_run(tmp_path / "a", {"pgtg": scores(0)})
    make_run(tmp_path / "b", {"pgtg": scores(0)}, cache="elsewhere")  # no part of the method
    made = built(tmp_path)
    assert len(made.runs) == 1 and any("counted once" in note for note in made.notes)
    make_run(tmp_path / "c", {"pgtg": scores(1)})
    with pytest.raises(ConfigError, match="same config and seed 0"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "other data"}, "data differs"),
        ({"metric": {"implementation": "rouge_score 0.2"}}, "metric rouge differs"),
        ({"decoding": {"greedy": True, "max_new_tokens": 64}}, "max_new_tokens=64"),
        ({"ids": "other-{}"}, "examples greedy differs"),
    ],
)
def test_what_does_not_measure_the_same_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
):
    make_run(tmp_path / "one", {"pgtg": scores(0)}, seed=0)
    make_run(tmp_path / "two", {"pgtg": scores(1)}, seed=1, **change)
    with pytest.raises(ConfigError, match=named) as caught:
        built(tmp_path)
    assert "one" in str(caught.value) and "two" in str(caught.value)


def test_runs_must_share_a_split(tmp_path: Path):
    make_run(tmp_path / "one", {"pgtg": scores(0)}, split="test")
    make_run(tmp_path / "two", {"pgtg": scores(1)}, split="validation", seed=1)
    with pytest.raises(ConfigError, match="share no split"):
        built(tmp_path)
    with pytest.raises(ConfigError, match="not every run was evaluated on test"):
        built(tmp_path, split="test")
    assert built(tmp_path / "one").split == "test"


def test_unfinished_runs_are_named(tmp_path: Path):
    make_run(tmp_path / "done", {"pgtg": scores(0)})
    make_run(tmp_path / "half", {"pgtg": scores(1)}, seed=1, finished=False)
    (tmp_path / "never" / ".hydra").mkdir(parents=True)
    lines = report([tmp_path], tmp_path / "out")
    text = "\n".join(lines)
    assert "half (not finished)" in text and "never (stopped before it began)" in text
    with pytest.raises(ConfigError, match=r"no finished run.*half"):
        load([tmp_path / "half"], None)
    with pytest.raises(ConfigError, match="no folder"):
        load([tmp_path / "nowhere"], None)


def test_damaged_scores_are_named(tmp_path: Path):
    run = make_run(tmp_path / "run", {"pgtg": scores(0)})
    file = run / "eval/test/pgtg/samples_greedy.jsonl"
    file.write_text(file.read_text().replace("test-1", "test-2"))
    with pytest.raises(ArtifactError, match=r"samples_greedy\.jsonl is damaged"):
        load([run], None)


def test_scores_of_another_shape_are_one_line(tmp_path: Path):
    run = make_run(tmp_path / "run", {"pgtg": scores(0)})
    artifact = RunFolder(run).artifact("eval", "test", "pgtg")
    results = artifact.manifest()["extra"]["results"]
    write_jsonl(artifact.working("y") / "samples_greedy.jsonl", [{"id": "a", "scores": "none"}])
    artifact.commit(inputs="y", results=results)
    with pytest.raises(ArtifactError, match="holds no scores as this pgtg writes them"):
        load([run], None)


def test_baseline_by_label_key_and_system(sweep: Path):
    label = "method=pgtg aggregator=max"
    for asked in (label, "aggregator=max", "method=pgtg,aggregator=max"):
        found = built(sweep, baseline=asked).baseline
        assert found is not None and found.label == label
    uniform = built(sweep, baseline="uniform").baseline
    assert uniform is not None and len(uniform.of) == 4
    assert built(sweep, baseline="none").baseline is None
    with pytest.raises(ConfigError, match="no row fits 'unifrom'; did you mean 'uniform'"):
        built(sweep, baseline="unifrom")
    with pytest.raises(ConfigError, match="fits several rows"):
        built(sweep, baseline="method=pgtg")


def test_a_control_of_each_group_is_the_baseline_of_its_group(tmp_path: Path):
    for i, name in enumerate(["avg", "max"]):
        systems = {"pgtg": scores(i), "uniform": scores(10 + i)}
        make_run(tmp_path / name, systems, aggregator__name=name)
    made = built(tmp_path, baseline="uniform")
    assert made.baseline is not None
    assert {label: row.label for label, row in made.baseline.of.items()} == {
        "aggregator=avg": "uniform (aggregator=avg)",
        "aggregator=max": "uniform (aggregator=max)",
    }


def test_a_metric_that_some_runs_lack_is_no_mean_of_the_others(tmp_path: Path):
    make_run(tmp_path / "a", {"pgtg": scores(0)}, seed=0)
    make_run(tmp_path / "b", {"pgtg": {"rougeLsum": scores(1)["rougeLsum"]}}, seed=1)
    made = built(tmp_path)
    assert {r.metric for r in made.results} == {"rougeLsum"}
    with pytest.raises(ConfigError, match="no run has 'rougelsum'; did you mean 'rougeLsum'"):
        built(tmp_path, metrics=["rougelsum"])


def test_means_without_examples_are_shown_and_not_tested(tmp_path: Path):
    """A search reports the mean of its top prompts: a number, no per-example file."""
    run = make_run(tmp_path / "run", {"pgtg": scores(0), "uniform": scores(1)})
    for name, mean in (("pgtg", 91.0), ("uniform", 88.0)):
        artifact = RunFolder(run).artifact("eval", "test", name)
        results = artifact.manifest()["extra"]["results"]
        results["decodings"] = {"top": {"decoding": {"prompts": 3}, "mean": {"accuracy": mean}}}
        points = [(32, 1.0), (64, 2.5), (224, 4.0 + len(name))]
        curve = [{"prompts": prompts, "best": best, "mean": 0.0} for prompts, best in points]
        results["search"] = {"judged_prompts": 224, "curve": curve}
        artifact.working("y")
        artifact.commit(inputs="y", results=results)
    made = built(run)
    assert {r.row.label: r.summary.mean for r in made.results} == {"pgtg": 91.0, "uniform": 88.0}
    assert all(r.comparison is None for r in made.results)
    lines = report([run], tmp_path / "out")
    assert any("91.00" in line for line in lines)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "judged prompts" in page
    assert "| pgtg | 1.00 | 2.50 | 2.50 | 8.00 |" in page  # after 40, 80, 160, 320
    assert "| uniform | 1.00 | 2.50 | 2.50 | 11.00 |" in page
    read = json.loads((tmp_path / "out" / "report.json").read_text())
    assert read["searches"]["pgtg"]["0"] == [[32, 1.0], [64, 2.5], [224, 8.0]]


def test_poster_leaves_a_column_empty_where_data_or_model_are_others(tmp_path: Path):
    """A toy's number in the paper's table would be read as one on CNN/DailyMail."""
    values = {"pgtg": {"rouge1": [40.0, 44.0]}}
    same: dict[str, Any] = {"data__name": "cnn_dm", "policy__path": "google-t5/t5-base"}
    others: dict[str, dict[str, Any]] = {"theirs": same, "data": same | {"data__name": "xsum"}}
    others |= {"model": same | {"policy__path": "google-t5/t5-small"}}
    cells = {}
    for name, changed in others.items():
        run = make_run(tmp_path / name, values, data=name, **changed)
        text = "\n".join(report([run], tmp_path / "out", layout="poster"))
        (line,) = re.findall(r"^pgtg +ours +(\S+)", text, re.MULTILINE)
        cells[name] = line, "Columns are empty where data or model are others" in text
    assert cells == {"theirs": ("42.00", False), "data": ("-", True), "model": ("-", True)}


def test_texts_that_differ_come_first_and_what_does_not_differ_is_folded(tmp_path: Path):
    rng = np.random.default_rng(0)
    for seed in range(4):
        base, ours = rng.normal(50, 5, 40), rng.normal(50, 5, 40)
        run = {"pgtg": {"a": [*ours], "b": [*ours]}, "uniform": {"a": [*base], "b": [*base]}}
        make_run(tmp_path / str(seed), run, seed=seed)
        for name, gain in (("pgtg", 9.0), ("uniform", 0.0)):
            artifact = RunFolder(tmp_path / str(seed)).artifact("eval", "test", name)
            results = artifact.manifest()["extra"]["results"]
            rows = read_jsonl(artifact.file("samples_greedy.jsonl"))
            for row in rows:
                row["scores"] = {c: v + gain for c, v in row["scores"].items()}
            mean = {c: float(np.mean([row["scores"][c] for row in rows])) for c in "ab"}
            made = {"decoding": {"greedy": False}, "mean": mean}
            results["decodings"] = {"greedy": results["decodings"]["greedy"], "sample": made}
            greedy = artifact.file("samples_greedy.jsonl").read_bytes()
            working = artifact.working("y")
            (working / "samples_greedy.jsonl").write_bytes(greedy)
            write_jsonl(working / "samples_sample.jsonl", rows)
            artifact.commit(inputs="y", results=results)
    made = build(*load([tmp_path], None), baseline="uniform")
    assert [*made.metrics] == ["sample", "greedy"]
    tests = {table.name: table.rows for table in tables(made) if table.name.startswith("tests")}
    assert [row[1] for row in tests["tests_sample"]] == ["a", "b"]
    ((label, metrics, *_, said),) = tests["tests_greedy"]
    assert (label, metrics, said) == ("pgtg", "a, b", "no difference shown")


def test_poster_has_published_rows_told_apart(sweep: Path, tmp_path: Path):
    other = make_run(tmp_path / "other", {"pgtg": scores(5)}, data="other", split="validation")
    lines = report([sweep, other], tmp_path / "out", layout="poster")
    text = "\n".join(lines)
    for task in ("prompt", "summarize"):
        for row in published()[task]["rows"]:
            name = row["name"]
            assert re.search(rf"^{re.escape(name)} +published ", text, re.MULTILINE)
            assert len(row["cells"]) == len(published()[task]["columns"])
    assert re.search(r"^start on newswire +ours ", text, re.MULTILINE)
    assert published()["source"].strip() in text
    page = (tmp_path / "out" / "poster.html").read_text()
    assert page.count('<tr class="published">') == 12 + 9


def test_poster_places_a_prompt_run_under_its_data(tmp_path: Path):
    accuracy = {"accuracy": [100.0, 0.0, 100.0, 100.0]}
    changed = {"task": "prompt", "metrics__names": []}
    changed |= {"judge__classifier__path": "FacebookAI/roberta-large"}
    make_run(tmp_path / "a", {"pgtg": accuracy}, data__name="sst2", **changed)
    make_run(tmp_path / "b", {"pgtg": accuracy}, data__name="mine", data="other", **changed)
    for name in "ab":  # named as a search names what it evaluates
        artifact = RunFolder(tmp_path / name).artifact("eval", "test", "pgtg")
        results = artifact.manifest()["extra"]["results"]
        best = results["decodings"].pop("greedy")
        results["decodings"] = {"best": best, "top": {"decoding": {}, "mean": {"accuracy": 62.5}}}
        if name == "b":
            del results["decodings"]["top"]
        artifact.working("y")
        artifact.commit(inputs="y", results=results)
    text = "\n".join(report([tmp_path], tmp_path / "out", layout="poster"))
    assert "row source SST-2 Yelp P. AG News mine" in " ".join(text.split())
    assert "pgtg ours 62.50 - - 75.00" in " ".join(text.split())


def test_command_prints_the_table_and_exits_2_on_refusal(sweep: Path, tmp_path: Path):
    out = tmp_path / "out"
    good = CliRunner().invoke(
        app, ["report", str(sweep), "--out", str(out), "--metrics", "rougeLsum"]
    )
    assert good.exit_code == 0, good.output
    assert re.search(r"^start +3 ", good.stdout, re.MULTILINE) and (out / "report.html").is_file()
    make_run(sweep / "stranger", {"pgtg": scores(7)}, seed=9, data="other")
    bad = CliRunner().invoke(app, ["report", str(sweep), "--out", str(out)])
    assert bad.exit_code == 2 and "error: data differs" in bad.stderr
    wrong = CliRunner().invoke(app, ["report", str(sweep), "--layout", "postr"])
    assert wrong.exit_code == 2 and "did you mean 'poster'" in wrong.stderr


def test_figures_of_a_former_report_go(sweep: Path, tmp_path: Path):
    report([sweep], tmp_path / "out")
    mine = tmp_path / "out" / "plots" / "mine.svg"
    mine.write_text("kept")
    report([sweep], tmp_path / "out", metrics=["rougeLsum"])
    names = {path.name for path in mine.parent.iterdir()}
    assert names == {"means_greedy_rougeLsum.svg", "means_greedy_rougeLsum.png", "mine.svg"}


def test_json_holds_what_the_numbers_rest_on(sweep: Path, tmp_path: Path):
    report([sweep], tmp_path / "out")
    found = read_json(tmp_path / "out" / "report.json")
    assert found["examples"] == N and found["decodings"]["greedy"]["max_new_tokens"] == 32
    assert len(found["data"]) == 64 and found["metrics"]["rouge"]["implementation"]
    runs = [path for row in found["rows"] for path in row["runs"].values()]
    assert len(set(runs)) == 9


def test_links_are_not_followed(tmp_path: Path):
    make_run(tmp_path / "real", {"pgtg": scores(0)})
    place = tmp_path / "place"
    place.mkdir()
    (place / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="no finished run"):
        collect.find([place])


def test_flat_config_and_plain_values():
    found = collect.flat(config())
    assert found["aggregator.name"] == "avg" and found["method.controls"] == ["uniform"]
    assert collect.plain([True, None, 1.5, "x"]) == "[true,null,1.5,x]"


def test_results_file_without_results(tmp_path: Path):
    run = make_run(tmp_path / "run", {"pgtg": scores(0)})
    write_json(run / "eval" / "results_test.json", {})
    with pytest.raises(ArtifactError, match="holds no results"):
        load([run], None)


@pytest.mark.slow
def test_report_on_runs_that_training_left(tmp_path: Path):
    """Two seeds of a tiny run, through all stages: every part of the report finds its numbers."""
    from pgtg.pipeline.run import train
    from tests.support.tiny import tiny

    for seed in (0, 1):
        train(tiny(f"seed={seed}", "method.controls=[uniform,shuffled]"), tmp_path / f"seed{seed}")
    made = built(tmp_path)
    assert [row.label for row in made.rows] == ["pgtg", "uniform", "shuffled", "start"]
    assert {(q.round, q.part) for q in made.quality} == {(0, "heldout"), (1, "heldout")}
    assert {"pair_accuracy", "effective_tokens", "judge_length_correlation"} <= set(
        made.quality[-1].values
    )
    for row in made.rows[:3]:
        cost = made.costs[row.label]["0"]
        assert cost.policy_updates == 4 and cost.seconds is not None
        assert cost.reward_updates == (0 if row.label == "uniform" else 8)
        assert cost.judged == (0 if row.label == "uniform" else 2 * 3 * (8 + 6))
        cfg = tiny().improve, tiny().reward.fit
        policy, reward = (one.micro_batch * one.accumulate for one in cfg)
        assert cost.trained is not None
        groups, rest = divmod(
            cost.trained - 4 * policy, 3
        )  # fewer where an epoch ends or scores tie
        assert rest == 0 and (groups == 0 if row.label == "uniform" else 0 < groups <= 8 * reward)
    assert set(made.policy_curves) == {"pgtg", "uniform", "shuffled"}
    assert made.reward_curves["pgtg"].x == (2, 4, 6, 8)
    assert made.lengths["pgtg"].tokens.shape == (2 * 6 * 3,)
    summary = read_json(tmp_path / "seed0" / "summary.json")
    (ours,) = [r for r in made.results if (r.row.label, r.decoding, r.metric) == SAMPLED_ROUGE]
    assert ours.values["0"] == pytest.approx(summary["test/sample/rouge1"])


SAMPLED_ROUGE = ("pgtg", "sample", "rouge1")


def test_controls_questions_are_answered_where_the_method_is_the_baseline(tmp_path: Path):
    rng = np.random.default_rng(0)
    noisy = lambda values: (values + rng.normal(0, 0.1, 60)).tolist()  # noqa: E731
    tails, no_tails = {"boilerplate": [100.0] * 60}, {"boilerplate": [0.0] * 60}
    for seed in range(4):
        same = rng.normal(50, 1, 60)
        systems = {
            "pgtg": {"rouge1": (same + 5).tolist(), "nll": (same - 9).tolist()} | tails,
            "uniform": {"rouge1": noisy(same), "nll": same.tolist()} | no_tails,
            "shuffled": {"rouge1": noisy(same + 5), "nll": (same - 9).tolist()} | tails,
        }
        controls = ["uniform", "shuffled"]
        make_run(tmp_path / str(seed), systems, seed=seed, method__controls=controls)
    runs, left_out = load([tmp_path], None)
    made = {table.name: table for table in tables(build(runs, left_out, baseline="pgtg"))}
    rows = {row[1]: row for row in made["questions"].rows}
    assert rows["uniform"][0] == "Does guidance help?" and rows["uniform"][2] == "yes"
    assert "nll (greedy) -9.00 better" in rows["uniform"][3]
    assert "boilerplate" not in rows["uniform"][3]  # neither end of it is good in itself
    question, _, said, evidence = rows["shuffled"]
    assert question == "Do the weights' positions matter?" and said == "not shown"
    assert "no difference shown, beyond ±0." in evidence
    assert "questions" not in {t.name for t in tables(build(runs, left_out, baseline="uniform"))}
