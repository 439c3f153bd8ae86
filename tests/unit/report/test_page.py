"""The page itself: one file, one plotly.js, nothing fetched, nothing of the user's run, secrets hidden."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_folders import Page, add_evaluation, make_dataset, make_run, page_of, write_json
from study_journals import AUROC, LOSS, PARAMS, begin, run_compromises, timed

from voxray.config.errors import InputError
from voxray.report.build import report
from voxray.report.page import Table, duration, number

EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium")


def test_the_page_is_well_formed_and_has_plotly_once(run: Path) -> None:
    page = page_of(run)
    assert not page.unbalanced
    assert not page.open
    assert page.raw.count("* plotly.js v") == 1
    assert len(page.scripts) == 2
    assert len(page.raw) < 6e6


def test_nothing_is_fetched_and_only_our_scripts_run(run: Path, study: Path) -> None:
    add_evaluation(run)
    page = page_of(run, study)
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]


def test_no_figure_can_be_uploaded(run: Path) -> None:
    draw = page_of(run).scripts[1]
    for setting in ("showSendToCloud: false", 'plotlyServerURL: ""', "displaylogo: false"):
        assert setting in draw


def test_what_a_user_wrote_is_text(tmp_path: Path, dataset: Path) -> None:
    run = make_run(tmp_path / "<script>alert(2)<", dataset)
    saved = json.loads((run / "config.json").read_text())
    saved["config"] |= {"description": EVIL, "tags": [EVIL], "hypothesis": f"{EVIL}'\"&amp;"}
    saved["sources"]["description"] = EVIL
    write_json(run / "config.json", saved)
    evaluation = add_evaluation(run)
    evaluation["table"][0]["label"] = EVIL
    evaluation["metrics"][EVIL] = 0.5
    evaluation["checkpoint"] = EVIL
    write_json(run / "evaluation_val.json", evaluation)
    log = (run / "log.jsonl").read_text().replace('"val/auroc"', json.dumps(f"val/{EVIL}"))
    (run / "log.jsonl").write_text(log)
    page = page_of(run)
    assert len(page.scripts) == 2
    assert "<script>alert" not in page.raw
    assert page.text.count(EVIL) > 5
    assert "'\"&amp;" in page.text
    (names,) = {tuple(trace["y"]) for trace in page.plots("AUROC per finding, val")["data"][1:]}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (20)" in names


def test_secrets_are_hidden(run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["logging"] |= {
        "wandb": {"api_key": "S3CRET-a"},
        "mlflow_token": "S3CRET-b",
        "max_tokens": 77,
    }
    saved["config"]["storage"]["path"] = "s3://user:S3CRET-c@bucket/runs"
    write_json(run / "config.json", saved)
    origin = json.loads((run / "provenance.json").read_text())
    origin["command"] += [
        "logging.wandb.api_key=S3CRET-a",
        "--password",
        "S3CRET-d",
        "s3://u:S3CRET-e@bucket",
    ]
    write_json(run / "provenance.json", origin)
    page = page_of(run)
    assert "S3CRET" not in page.raw
    values = {
        row[0]: row[1]
        for rows in page.tables
        for row in rows
        if row and row[0].startswith(("logging", "storage"))
    }
    assert values["logging.wandb.api_key"] == values["logging.mlflow_token"] == "••••••"
    assert values["logging.max_tokens"] == "77"
    assert values["storage.path"] == "s3://••••••@bucket/runs"
    assert "logging.wandb.api_key=•••••• --password •••••• s3://••••••@bucket" in page.text


def test_several_folders_make_one_page(run: Path, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "both.html"
    assert report([study, run], out) == out
    page = Page(out.read_text(encoding="utf-8"))
    assert page.headings[:2] == ["Search", "Keys"]
    assert "Curves" in page.headings
    assert page.raw.count("* plotly.js v") == 1
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert links == ["#part1", "#part2"]
    assert {"part1", "part2"} <= ids
    assert not (study / "report.html").exists()


def test_a_place_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        report([run], tmp_path / "file" / "report.html")
    with pytest.raises(InputError, match="is a folder"):
        report([run], tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (13.0, "13"),
        (3e-5, "3e-05"),
        (1234567.8, "1,234,568"),
        ("x", "x"),
    ],
)
def test_number(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.5, "0.5 s"), (41, "41 s"), (185, "3 min 05 s"), (7805, "2 h 10 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_fractions_of_a_column_share_three_decimals() -> None:
    table = Table(("a", "b", "c"), [(0.5, 1e-5, "x"), (None, 0.5, 1)])
    assert [table.cell(0, 0), table.cell(0, 1), table.cell(1, 0)] == ["0.500", "1e-05", "–"]
    assert [table.is_numeric(column) for column in range(3)] == [True, True, False]


def test_the_command_prints_the_path_last_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_dataset(tmp_path / "data"))
    add_evaluation(run)
    code = (
        "import sys; from voxray.cli.main import main\n"
        "try: main(['report', sys.argv[1]])\n"
        "finally: print([m for m in ('torch', 'ray') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(run / "report.html")
    assert done.stderr.splitlines()[-1] == "[]"
    assert (run / "report.html").stat().st_size > 4e6


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_every_figure_and_complains_of_nothing(
    run: Path, study: Path, tmp_path: Path
) -> None:
    add_evaluation(run)
    run_compromises(begin(tmp_path / "three", AUROC, PARAMS, LOSS, trials=12), 12, 3)
    members = begin(tmp_path / "members", AUROC, space={}, trials=2)
    for index in range(2):
        exploits = [{"epochs": 1.0, "step": 24, "from": 1 - index, "values": {"model.dropout": 0.1}}]
        members.add_trial(timed(index, 0, 60, [0.5], pbt=exploits, **{"at/48": [2.0, 0.5]}))
    folders = [run, study, tmp_path / "three", tmp_path / "members"]
    out = report(folders, tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=8000", "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    num_drawn = len(re.findall(r'<svg class="main-svg" [^>]*style="background', done.stdout))
    assert num_drawn == len(Page(out.read_text(encoding="utf-8")).plot_titles)
