"""`show` and `ls`: what they print, as text and as JSON."""

import json
import math
from pathlib import Path

import pytest

from voxray.cli.main import app, main
from voxray.cli.output import print_table
from voxray.cli.show import schema_text
from voxray.config.errors import InputError
from voxray.core.experiment import load_experiment
from voxray.core.registry import TASKS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def voxray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run one command in the repository's root and return (stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> tuple[str, str]:
        app(args=list(arguments), standalone_mode=False)
        return tuple(capsys.readouterr())

    return run


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_schema_is_what_show_prints(task: str, voxray) -> None:
    committed = (ROOT / f"docs/schemas/{task}.json").read_text()
    assert committed == schema_text(task) + "\n", (
        f"run: voxray show --schema {task} > docs/schemas/{task}.json"
    )
    assert voxray("show", "--schema", task)[0] == committed


def test_an_experiments_schema_is_its_tasks(voxray) -> None:
    assert voxray("show", "cxr_memory/dev_fast", "--schema")[0] == schema_text("cxr_memory") + "\n"


def test_show_prints_every_value_with_its_source(voxray) -> None:
    out, err = voxray("show", "cxr_memory/dev_fast", "--training.learning_rate", "1e-4")
    resolved = load_experiment("cxr_memory/dev_fast", ["training.learning_rate=1e-4"])
    lines = [line.strip() for line in out.splitlines()]
    for path, source in resolved.sources.items():
        if path == "training.batch_size_per_worker":  # computed, as the other spelling was given
            continue
        key = path.partition(".")[2] or path
        assert any(line.startswith(key) and line.endswith(source) for line in lines), path
    assert any(line.split() == ["learning_rate", "0.0001", "command", "line"] for line in lines)
    assert "note: override: training.learning_rate=1e-4" in err
    assert "note: cxr_memory/dev_fast is experiments/cxr_memory/dev_fast.yaml" in err


def test_show_json_holds_the_whole_config(voxray) -> None:
    rows = json.loads(voxray("show", "cxr_memory/dev_fast", "tags=[a, b]", "--json")[0])
    config = load_experiment("cxr_memory/dev_fast", ["tags=[a, b]"]).config.model_dump(mode="json")
    for row in rows:
        if row["source"].startswith("computed: "):
            continue
        value = config
        for part in row["key"].split("."):
            value = value[part]
        assert row["value"] == value
    assert {row["key"].partition(".")[0] for row in rows} == set(config) - {"stages"} | {"stages"}


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [  # batch_size, batch_size_per_worker, rows per update
        (["training.batch_size=32"], (32, 16, 64)),
        (["training.batch_size_per_worker=16"], (32, 16, 64)),
        (["training.batch_size_per_worker=16", "training.batch_size=32"], (32, 16, 64)),
        (["training.batch_size=33"], (33, 17, 66)),
    ],
)
def test_show_prints_both_batch_sizes_whichever_was_given(
    overrides: list[str], sizes: tuple[int, int, int], tmp_path: Path, voxray
) -> None:
    (tmp_path / "e.yaml").write_text("task: cxr_memory\n")
    common = ["scale.num_workers=2", "training.accumulate_grad_batches=2", "--json"]
    rows = json.loads(voxray("show", str(tmp_path / "e.yaml"), *overrides, *common)[0])
    shown = {row["key"]: row for row in rows}
    names = ("batch_size", "batch_size_per_worker", "rows_per_update")
    assert tuple(shown[f"training.{name}"]["value"] for name in names) == sizes
    assert len(shown) == len(rows)
    assert "accumulate_grad_batches" in shown["training.rows_per_update"]["source"]
    for text in overrides:
        assert shown[text.partition("=")[0]]["source"].startswith(("command line", "computed"))


def test_show_prints_what_each_stage_sets_and_how_many_rows_it_takes(voxray) -> None:
    override = "stages.2.training.accumulate_grad_batches=4"
    out, err = voxray("show", "memory_dev", override)
    stages = out.partition("\nstages\n")[2].partition("\n\n")[0].splitlines()
    shown = {line.split()[0]: line.split()[1] for line in stages}
    assert shown == {
        "0.name": "phase1_frozen", "0.epochs": "1", "0.parameters.backbone.freeze": "true",
        "0.batch_size": "32", "0.batch_size_per_worker": "32", "0.rows_per_update": "32",
        "1.name": "phase1", "1.epochs": "3",
        "1.batch_size": "32", "1.batch_size_per_worker": "32", "1.rows_per_update": "32",
        "2.name": "phase2", "2.data.filter": "''", "2.epochs": "1", "2.start_from": "phase1/best",
        "2.parameters.backbone.learning_rate": "0.0003", "2.learning_rate": "0.001",
        "2.schedule": "one_cycle", "2.memory.momentum": "0.9999", "2.batch_size": "64",
        "2.accumulate_grad_batches": "4", "2.batch_size_per_worker": "64", "2.rows_per_update": "256",
    }  # fmt: skip
    canonical = "stages.2.accumulate_grad_batches"
    assert f"note: command line: stages.2.training.accumulate_grad_batches is {canonical} here" in err


def test_show_reads_a_guides_file(tmp_path: Path, voxray) -> None:
    old = tmp_path / "old.yaml"
    old.write_text("experiment_name: theirs\nmemory: {bank_slots: 512}\nphase1: {batch_size: 64}\n")
    out, err = voxray("show", str(old))
    assert f"note: {old}:3: phase1.batch_size is training.batch_size here" in err
    left = out.partition("not mapped:\n")[2].split()
    assert left == ["memory.bank_slots", "512", f"{old}:2", "no", "key", "of", "cxr_memory"]
    rows = {row["key"]: row for row in json.loads(voxray("show", str(old), "--json")[0])}
    assert rows["training.batch_size"]["value"] == 64
    assert [rows[f"stages.{n}.name"]["value"] for n in range(3)] == ["phase1_frozen", "phase1", "phase2"]
    assert rows["memory.bank_slots"]["not_mapped"] == "no key of cxr_memory"


def test_show_understands_the_guides_spelling_of_the_experiment(voxray) -> None:
    assert (
        voxray("show", "--config", "cxr_memory/dev_fast", "--json")[0]
        == voxray("show", "cxr_memory/dev_fast", "--json")[0]
    )
    with pytest.raises(InputError, match="'dev_fast' is not an override"):
        voxray("show", "--config", "cxr_memory/dev_fast", "dev_fast")


def test_ls_lists_every_experiment_and_filters_by_glob(voxray) -> None:
    rows = json.loads(voxray("ls", "experiments", "--json")[0])
    assert {row["file"] for row in rows} == {
        str(f.relative_to(ROOT)) for f in (ROOT / "experiments").rglob("*.yaml")
    }
    assert not [row for row in rows if row["description"].startswith("does not load")]
    baselines = json.loads(voxray("ls", "experiments", "baseline_*", "--json")[0])
    assert baselines == [row for row in rows if row["name"].startswith("baseline_")] != []
    assert json.loads(voxray("ls", "experiments", "cxr_memory/dev*", "--json")[0]) == [
        row for row in rows if row["file"] == "experiments/cxr_memory/dev_fast.yaml"
    ]
    assert json.loads(voxray("ls", "experiments", "nothing", "--json")[0]) == []


def test_ls_names_a_broken_experiment_and_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "experiments/t").mkdir(parents=True)
    (tmp_path / "experiments/t/good.yaml").write_text("task: cxr_memory\ntags: [x]")
    (tmp_path / "experiments/t/bad.yaml").write_text("task: cxr_memory\ntrainin: {epochs: 1}")
    monkeypatch.chdir(tmp_path)
    app(args=["ls", "experiments", "--json"], standalone_mode=False)
    bad, good = json.loads(capsys.readouterr().out)
    assert "bad.yaml:2: trainin.epochs: 1 was given" in bad["description"]
    assert good["tags"] == ["x"]


def test_ls_reads_runs_studies_and_datasets(tmp_path: Path, voxray) -> None:
    def write(path: str, content: object) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content if isinstance(content, str) else json.dumps(content))

    write("t/done/config.json", {"config": {"task": "t", "tags": ["x"]}, "sources": {}})
    end = {
        "kind": "end",
        "status": "finished",
        "best": {"metric": "val/auroc", "value": 0.8, "step": 96},
        "time_s": 33.0,
    }
    write("t/done/log.jsonl", f'{{"kind": "epoch", "val/auroc": null}}\n{json.dumps(end)}\n')
    write("t/done/provenance.json", {"started": "2025-01-01T00:00:00+00:00"})
    write("t/cut/config.json", {"config": {"task": "t"}})
    write("t/cut/log.jsonl", '{"kind": "step", "step": 1}\n{"kind": "st')
    write("t/broken/config.json", "{")
    write(
        "t/studies/s/study.json",
        {"experiment": "e.yaml", "started": "2025", "space": {"search": {"trials": 3}}},
    )
    write("t/studies/s/trials/0000/config.json", {"config": {"task": "t"}})
    manifest = {"shards": [{"bytes": 2_500_000}], "counts": {"train": {"rows": 7, "groups": 2}},
                "recipe": {"task": "t"}, "source": {"path": "raw"}}  # fmt: skip
    write("data/set/manifest.json", manifest)

    def rows(kind: str) -> dict[str, dict]:
        return {r["name"]: r for r in json.loads(voxray("ls", kind, "--storage", str(tmp_path), "--json")[0])}

    runs = rows("runs")
    assert set(runs) == {"done", "cut", "broken"}
    assert (runs["done"]["status"], runs["done"]["best"], runs["done"]["tags"]) == ("finished", 0.8, ["x"])
    assert runs["done"]["started"].startswith("2025")
    assert runs["cut"]["status"] == "unfinished"
    assert runs["broken"]["status"] == "config.json is broken"
    study = rows("studies")["s"]
    assert (study["task"], study["trials"], study["declared"], study["status"]) == ("t", 1, 3, "unfinished")
    assert rows("datasets")["set"] == {
        "name": "set", "task": "t", "train": 7, "mb": 2.5, "source": "raw", "path": str(tmp_path / "data/set")
    }  # fmt: skip


def test_tables_are_aligned_text_and_json_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"label": "Mass", "auroc": 0.81234, "low": math.nan}, {"label": "Hernia [x]", "positives": 3}]
    print_table(rows, as_json=False, title="val")
    assert capsys.readouterr().out.splitlines() == [
        "val",
        "label       auroc   low  positives",
        "Mass        0.8123  -    -",
        "Hernia [x]  -       -    3",
    ]
    print_table(rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"label": "Mass", "auroc": 0.81234, "low": None}, rows[1]]
    print_table([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_main_exits_with_the_errors_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", str(ROOT / "experiments/cxr_memory/dev_fast.yaml"), "nonsense=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: command line: nonsense: 1 was given")
