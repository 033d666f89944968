"""report.md and report.png as a whole."""

import copy
import json
import re

import pytest

from hf_clsi.hub.report import render_report, write_report


def test_the_report_opens_with_what_it_is_not(results, ledger):
    opening = render_report(results, ledger)[:600]
    assert opening.startswith("# Cross-lingual interleaving in miniature\n\n**This is a miniature.**")
    assert "they must not be put beside the paper's" in opening


def test_the_parts_come_in_order_and_the_headline_leads(results, ledger):
    report = render_report(results, ledger)
    assert re.findall(r"^##+ (.*)$", report, flags=re.MULTILINE) == [
        "Accuracy",
        "Claims",
        "Accuracy under the tuple rule",
        "Paired comparisons",
        "What each recipe saw",
        "Hidden-state alignment",
        "Settings",
        "Reproduce",
        "Appendix",
        "Every hold-out rule, span and normalization",
        "Paired comparisons: hold-out tuple, span gain, sum over tokens",
        "Ledger by stage",
        "Alignment by layer: stories",
        "Alignment by layer: parallel-prompts",
    ]
    assert "Headline: hold-out strict, span gain, sum over tokens." in report
    assert "hf-clsi reproduce --preset tiny --output-dir DIR --seed 0" in report
    assert "![Accuracy, training and alignment](report.png)" in report


def test_the_command_that_repeats_a_run_has_its_split_and_changes(results, ledger):
    results["settings"] |= {"split": "dev", "changes": {"items": 48, "speech.reading": "sentences"}}
    command = "hf-clsi reproduce --preset tiny --output-dir DIR --seed 0 --split dev --set items=48"
    assert f"{command} --set 'speech.reading=\"sentences\"'\n" in render_report(results, ledger)


def test_every_table_is_well_formed(results, ledger):
    lines = render_report(results, ledger).splitlines()
    tables = 0
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if re.fullmatch(r"\|(:?-+:?\|)+", line):
            tables += 1
            assert before.count("|") == line.count("|") == after.count("|")
    assert tables == 16
    starts = [i for i, line in enumerate(lines) if line.startswith("|") and not lines[i - 1].startswith("|")]
    assert len(starts) == tables
    assert all(lines[i - 1] == "" for i in starts)  # else Markdown takes the table for a paragraph


def test_every_number_of_the_headline_is_in_the_results(results, ledger):
    report = render_report(results, ledger)
    table = report.split("## Accuracy\n")[1].split("\n\n")[1]
    shown = sorted(float(text) for text in re.findall(r"([\d.]+) ±", table))
    reading = ("strict", "gain", "sum")
    rows = [r for r in results["rows"] if (r["holdout"], r["span"], r["normalization"]) == reading]
    assert shown == sorted(round(100 * r["accuracy"], 1) for r in rows)
    assert len(shown) == 48


def test_rendering_changes_nothing_and_is_repeatable(results, ledger):
    before = copy.deepcopy((results, ledger))
    first = render_report(results, ledger)
    assert (results, ledger) == before
    assert render_report(results, ledger) == first


def test_a_partial_experiment_is_reported_too(results):
    results = {
        "rows": [r for r in results["rows"] if r["recipe"] == "baseline-en"][:1],
        "settings": {"seed": 4},
    }
    report = render_report(results, {"recipes": {}, "matched": []})
    assert "| baseline-en |" in report
    assert "Hidden-state alignment" not in report
    assert "nan" not in report.lower().split()


def test_the_folder_gets_both_files(tmp_path, results, ledger):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "ledger.json").write_text(json.dumps(ledger))
    paths = write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.json",
        "report.md",
        "report.png",
        "results.json",
    ]
    assert paths == [tmp_path / "report.md", tmp_path / "report.png"]
    assert paths[0].read_text(encoding="utf-8") == render_report(results, ledger)


def test_missing_results_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results.json is missing; it is written by `hf-clsi reproduce`"
    ):
        write_report(tmp_path)
