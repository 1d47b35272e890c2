"""The log: bytes of metrics.jsonl, rewinding, the console, and W&B that never ends a run."""

import hashlib
import io
import json
import os
import pty
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgtg.config import LoggerConfig
from pgtg.errors import ArtifactError, DivergedError, PgtgError
from pgtg.runs import console, tracker
from pgtg.runs.log import RunLog


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in list(os.environ):
        if name.startswith("WANDB_") or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "NETRC"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# --- metrics.jsonl and log.txt --------------------------------------------------------------------


def test_metrics_lines_are_exact_and_hold_no_time(tmp_path: Path):
    """Floats by repr, ints as ints, keys in order: the bytes depend on the values only."""
    log = RunLog(tmp_path)
    log.metrics("align", 0, 5, {"align/loss": 1 / 3, "n": 3, "x": np.float32(0.1)})  # type: ignore[dict-item]
    log.metrics("improve", 1, 6, {"a": torch.tensor(2.0)})  # type: ignore[dict-item]
    expected = (
        b'{"stage": "align", "round": 0, "step": 5, "align/loss": 0.3333333333333333, "n": 3, '
        b'"x": 0.10000000149011612}\n{"stage": "improve", "round": 1, "step": 6, "a": 2.0}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected
    assert log.position() == len(expected)
    log.close(0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(tmp_path: Path, bad: float):
    log = RunLog(tmp_path)
    with pytest.raises(DivergedError, match="align round 1 step 7: loss is"):
        log.metrics("align", 1, 7, {"ok": 1.0, "loss": bad})
    with pytest.raises(ValueError, match="step"):
        log.metrics("align", 1, 7, {"step": 1.0})
    assert log.position() == 0
    log.close(1)


def test_rewind_drops_exactly_the_lines_after_the_commit(tmp_path: Path):
    """Lines of a killed run after its last commit are made again: none twice, none missing."""
    log = RunLog(tmp_path)
    for step in range(3):
        log.metrics("a", 0, step, {"x": step})
    position = log.position()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    log.metrics("a", 0, 3, {"x": 3})
    log.close(1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "a", "rou')  # killed within a line
    log = RunLog(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 4  # the half line is gone
    log.rewind(position)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    log.metrics("a", 0, 3, {"x": 3})
    log.close(0)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("place", [0, 20, -2])
def test_one_flipped_bit_in_what_was_committed_is_found(tmp_path: Path, place: int):
    log = RunLog(tmp_path)
    log.metrics("align", 0, 1, {"loss": 1.25})
    log.metrics("align", 0, 2, {"loss": 1.5})
    committed = log.position()
    log.metrics("align", 0, 3, {"loss": 2.0})
    log.close(1)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place if place >= 0 else committed + place] ^= 1
    path.write_bytes(damaged)
    log = RunLog(tmp_path)
    with pytest.raises(ArtifactError, match=r"metrics.jsonl is not what the run wrote .* delete"):
        log.rewind(committed)
    assert path.read_bytes() == damaged  # nothing was cut
    (tmp_path / "metrics.check.json").unlink()
    log.rewind(committed)
    log.close(0)
    path.write_bytes(whole)


def test_the_check_covers_what_is_left_after_a_rewind_at_any_moment(tmp_path: Path):
    log = RunLog(tmp_path)
    positions = [0]
    for step in range(3):
        log.metrics("align", 0, step, {"loss": 0.5 * step})
        positions.append(log.position())
    for position in reversed(positions):
        log.rewind(position)
        kept = json.loads((tmp_path / "metrics.check.json").read_text())
        data = (tmp_path / "metrics.jsonl").read_bytes()
        assert kept == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        again = RunLog(tmp_path)  # as after a kill right here
        again.rewind(position)
        again.close(0)
    log.close(0)


@pytest.mark.parametrize("position", [5, 1000])
def test_rewind_refuses_a_file_that_does_not_fit(tmp_path: Path, position: int):
    log = RunLog(tmp_path)
    log.metrics("a", 0, 0, {"x": 1.0})
    before = log.position()
    with pytest.raises(ArtifactError, match="does not fit"):
        log.rewind(position)
    assert log.position() == before
    log.rewind(0)
    assert log.position() == 0
    log.close(0)


def test_a_half_line_longer_than_a_block_is_cut(tmp_path: Path):
    """The search for the last line end goes back over several blocks."""
    path = tmp_path / "metrics.jsonl"
    for kept in (b"", b'{"a": 1}\n'):
        path.write_bytes(kept + b"x" * 200_000)
        RunLog(tmp_path).close(0)
        assert path.read_bytes() == kept


def test_log_files_are_never_opened_through_links(tmp_path: Path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PgtgError, match="cannot write"):
        RunLog(tmp_path)


def test_log_txt_has_the_time_on_each_line_and_keeps_text_harmless(tmp_path: Path, capsys):
    """Markup is not interpreted, escape sequences and lone surrogates are shown as text."""
    log = RunLog(tmp_path)
    log.say("[bold]x[/bold] \x1b[31mred \ud800 café\nsecond [/nonsense] " + "long " * 60)
    log.warn("care")
    log.close(0)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    assert lines[0].endswith(r"[bold]x[/bold] \x1b[31mred \ud800 café")
    assert lines[2].endswith(" warning: care")
    out, err = capsys.readouterr()
    assert out == ""
    assert r"[bold]x[/bold] \x1b[31mred \ud800 café" in err
    assert err.splitlines()[1].count("long") == 60  # never wrapped
    assert "warning: care" in err


def test_quiet_shows_warnings_and_results_only(tmp_path: Path, capsys):
    log = RunLog(tmp_path, quiet=True)
    log.say("hidden")
    log.warn("seen")
    log.table("t", ["name", "value"], [["a", 1.0]])
    with log.progress("p", 2) as bar:
        bar.advance(2)
    log.close(0)
    out, err = capsys.readouterr()
    assert err == "warning: seen\n"
    assert "a" in out
    assert "hidden" in (tmp_path / "log.txt").read_text()


# --- tables and progress --------------------------------------------------------------------------


def test_plain_table_goes_to_stdout_in_aligned_columns(tmp_path: Path, capsys):
    log = RunLog(None)
    log.table("Results [x]", ["method", "rouge1"], [["pgtg", 41.234], ["uniform", None]])
    log.close(0)
    out, err = capsys.readouterr()
    assert out == "Results [x]\nmethod   rouge1\npgtg      41.23\nuniform       -\n"
    assert err == ""
    assert not list(tmp_path.glob("*.jsonl"))


def test_table_on_a_terminal_is_drawn_and_keeps_markup_literal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    log = RunLog(None)
    log.table("Results", ["method", "value"], [["[red]a[/red]", 1.5]])
    log.close(0)
    assert "[red]a[/red]" in screen.getvalue()
    assert "─" in screen.getvalue() and "\x1b[1mmethod" in screen.getvalue()


def test_plain_progress_is_rare_and_ends_with_a_line(monkeypatch, capsys):
    """200 steps of 1 s: a line per tenth of the work (20 s), and the last one; no bar."""
    clock = iter(range(10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)) / 2)
    log = RunLog(None)
    with log.progress("align round 0", 200) as bar:
        for _ in range(200):
            bar.advance(1, loss=0.123456)
    log.close(0)
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 21
    assert re.fullmatch(r"align round 0: \d+/200, .* left, loss 0\.1235", lines[0])
    assert re.fullmatch(r"align round 0: 200/200 in .*, loss 0\.1235", lines[-1])
    assert "\x1b" not in "".join(lines)


def test_work_done_at_once_stands_in_the_log_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for worth, printed in ((1.0, False), (0.0, True)):
        monkeypatch.setattr("pgtg.runs.console.LINE_WORTH", worth)
        log = RunLog(tmp_path)
        with log.progress("sample", None) as bar:
            bar.advance(3)
            bar.advance()
        log.close(0)
        line = r"sample: 4 in 0\.0 s\n"
        assert bool(re.fullmatch(line, capsys.readouterr().err)) is printed
        assert re.search(line, (tmp_path / "log.txt").read_text())


def test_bar_on_a_terminal(monkeypatch, tmp_path: Path):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    log = RunLog(tmp_path)
    with log.progress("[b]align", 4) as bar:
        for _ in range(4):
            bar.advance(loss=0.5)
    log.close(0)
    assert "[b]align" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert "[b]align: 4/4 in" in (tmp_path / "log.txt").read_text()


SPEAKER = """
import sys
from pathlib import Path
from pgtg.runs.log import RunLog
log = RunLog(Path(sys.argv[1]))
for n in range(5000):
    log.say("line " * 20)
    log.table("t", ["a"], [[1]])
    log.metrics("a", 0, n, {"x": n})
log.close(0)
"""


def test_a_console_that_goes_away_does_not_end_the_run(tmp_path: Path):
    """Both pipes are closed by their readers early on; the run ends with 0 and all its lines."""
    child = subprocess.Popen(
        [sys.executable, "-c", SPEAKER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stderr.readline()
    child.stdout.close()
    child.stderr.close()
    assert child.wait(60) == 0
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 5000


def test_colour_only_on_a_terminal_without_no_color(tmp_path: Path):
    """On a real terminal a warning is coloured, with NO_COLOR it is not."""
    code = "from pgtg.runs.log import RunLog; RunLog(None).warn('care')"
    seen = {}
    for value in ("", "1"):
        parent, child = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "NO_COLOR": value}
        subprocess.run([sys.executable, "-c", code], stderr=child, env=env, check=True)
        os.close(child)
        seen[value] = os.read(parent, 1000).decode()
        os.close(parent)
    assert "\x1b[33m" in seen[""]
    assert seen["1"].strip() == "warning: care"


def test_an_ascii_console_gets_escapes(tmp_path: Path):
    code = "from pgtg.runs.log import RunLog; RunLog(None).table('café', ['ü'], [['→']])"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stdout.decode("ascii").splitlines() == [r"caf\xe9", r"\xfc", r"\u2192"]


# --- trackers -------------------------------------------------------------------------------------


def wandb_config(**keys) -> LoggerConfig:
    return LoggerConfig(**{"name": "wandb", "project": "pgtg-test", **keys})


def test_the_null_tracker_imports_nothing(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from pgtg.runs.log import RunLog, tracker\n"
        "from pgtg.config import LoggerConfig\n"
        "log = RunLog(None, tracker=tracker(LoggerConfig(name='none'), Path('.'), {}))\n"
        "log.metrics('a', 0, 0, {'x': 1.0}); log.close(0); print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_mode_follows_config_then_environment_then_key(monkeypatch, tmp_path: Path):
    """Online only where a key is at hand: nothing is ever asked."""
    assert tracker.online_mode(None) == "offline"
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text("machine api.wandb.ai login user password x\n")
    assert tracker.online_mode(None) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracker.online_mode(None) == "offline"
    netrc.write_text("nonsense\n")
    assert tracker.online_mode(None) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert tracker.online_mode(None) == "online"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert tracker.online_mode(None) == "offline"
    assert tracker.online_mode("disabled") == "disabled"


def test_the_run_id_is_kept_and_a_strange_one_replaced(tmp_path: Path):
    first = tracker._run_id(tmp_path / "wandb_id")
    assert tracker._run_id(tmp_path / "wandb_id") == first
    (tmp_path / "wandb_id").write_text("../../x")
    assert re.fullmatch("[0-9a-f]{16}", tracker._run_id(tmp_path / "wandb_id"))


class Broken:
    """A tracker that fails at one call."""

    def __init__(self, at: str):
        self.at = at
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at or self.at == "all":
            raise RuntimeError(f"no {name}\nsecond line")

    def start(self) -> None:
        self._call("start")

    def kept(self) -> None:
        pass

    def log(self, stage: str, round: int, step: int, values: object) -> None:
        self._call("log")

    def table(self, name: str, round: int, columns: object, rows: object) -> None:
        self._call("table")

    def page(self, name: str, path: Path) -> None:
        self._call("page")

    def summary(self, values: object) -> None:
        self._call("summary")

    def close(self, exit_code: int) -> None:
        self._call(f"close{exit_code}")


@pytest.mark.parametrize("at", ["start", "log", "table", "page", "summary", "close1", "all"])
def test_a_failing_tracker_is_said_once_and_ends_nothing(tmp_path: Path, capsys, at: str):
    """It is told once more, at the end, that the run is over; metrics.jsonl has every line."""
    broken = Broken(at)
    log = RunLog(tmp_path, tracker=broken)
    for step in range(3):
        log.metrics("a", 0, step, {"x": 1.0})
    log.rows("texts", 0, ["text"], [["a"]])
    log.page("credit", tmp_path / "page.html")
    log.summary({"x": 1.0})
    log.close(1)
    log.close(1)  # a second close tells nobody
    err = capsys.readouterr().err
    assert err.count("the tracker failed (RuntimeError: no ") == 1
    assert len(err.splitlines()) == 1
    assert broken.calls.count("close1") == 1
    assert broken.calls.count("log") == {"start": 0, "all": 0, "log": 1}.get(at, 3)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_failing_wandb_falls_back_to_offline_once(monkeypatch, tmp_path: Path, capsys):
    """Online fails (no network): offline is tried; where that fails as well, it is said once."""
    import wandb
    from wandb.errors import CommError

    modes = []

    def init(**settings: object) -> None:
        modes.append(settings["mode"])
        raise CommError("no network")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    log = RunLog(tmp_path, tracker=tracker.tracker(wandb_config(), tmp_path, {}))
    log.metrics("a", 0, 0, {"x": 1.0})
    log.close(0)
    assert modes == ["online", "offline"]
    assert capsys.readouterr().err.count("the tracker failed (CommError: no network)") == 1


WANDB_RUN = """
import random, sys
from pathlib import Path
from pgtg.config import LoggerConfig
from pgtg.runs.log import RunLog, tracker
folder, first, code = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random.seed(0); state = random.getstate()
cfg = LoggerConfig(name="wandb", project="pgtg-test", group="g")
log = RunLog(folder, tracker=tracker(cfg, folder, {"name": "try", "seed": 1}))
for step in range(first, first + 3):
    log.metrics("align", 0, step, {"align/loss": 1.5, "pairs": 3})
log.rows("generations_heldout", 0, ["text", "score"], [["a b", 1.5], ["c", 2.5]])
(folder / "credit.html").write_text("<p>credit</p>")
log.page("token_credit", folder / "credit.html")
log.summary({"eval/rouge1": 41.0})
log.close(code)
assert random.getstate() == state
"""


@pytest.mark.slow
def test_wandb_for_real_offline_and_resumed_into_the_same_run(tmp_path: Path):
    """Two processes on one run folder write two offline parts of one run id, and say where."""
    folder = tmp_path / "run"
    folder.mkdir()
    for first, code in ((0, 1), (3, 0)):
        own = "ignore:Implicitly cleaning up:ResourceWarning"  # W&B's, of its media folder
        strict = ["-W", "error", "-W", own]
        command = [sys.executable, *strict, "-c", WANDB_RUN, folder, first, code]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "")
        said = done.stderr.split("wandb sync ")
        assert len(said) == 2 and Path(said[1].strip()).parent == folder / "wandb"
        assert Path(said[1].strip()).is_dir()
    run_id = (folder / "wandb_id").read_text().strip()
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert {part.name.rsplit("-", 1)[1] for part in parts} == {run_id}
    files = [part / f"run-{run_id}.wandb" for part in parts]
    assert files
    assert all(file.stat().st_size > 100 for file in files)
    written = b"".join(file.read_bytes() for file in files)
    media = [path for part in parts for path in (part / "files" / "media").rglob("*.*")]
    tables = [json.loads(path.read_text()) for path in media if path.suffix == ".json"]
    assert {"columns": ["text", "score"], "data": [["a b", 1.5], ["c", 2.5]]}.items() <= (
        tables[0].items()
    )
    pages = [path.read_text() for path in media if path.suffix == ".html"]
    assert pages and all("<p>credit</p>" in page for page in pages)
    keys = (b"align/loss", b"align/pairs", b"align/step", b"eval/rouge1", b"pgtg-test")
    for word in (*keys, b"token_credit", b"generations_heldout/round_00"):
        assert word in written


def random_states() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_global_random_state_is_left_alone(tmp_path: Path):
    before = random_states()
    log = RunLog(tmp_path)
    log.metrics("a", 0, 0, {"x": 1.0})
    tracker._run_id(tmp_path / "wandb_id")
    log.close(0)
    assert random_states() == before


def test_a_note_that_is_said_once_stands_once(tmp_path: Path):
    log = RunLog(tmp_path, quiet=True)
    for _ in range(3):
        log.note_once("the cache grows")
    assert (tmp_path / "log.txt").read_text().count("the cache grows") == 1
