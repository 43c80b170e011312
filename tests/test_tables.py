"""Tables say what the rows say, and the page around them stays as it is."""

import json
import re
from pathlib import Path

import pytest
from pages import page_of, trace_row, write_page

from poisontrace import tables
from poisontrace._errors import InvalidInputError


def test_tables_are_made_from_the_rows(tmp_path: Path) -> None:
    """Means, the worst trace, medians; what stands around the marks stays; doing it twice changes nothing."""
    stages = {"forward pass": 0.2, "clustering": 0.1, "unlearning": 0.3}
    speeds = [
        trace_row(kind="speed", event=event, plain_seconds=0.1, seconds=ratio / 10, ratio=ratio, second_seconds=0.02)
        | {"model": {"name": "small_cnn", "width": 32}, "stages": stages}
        for event, ratio in enumerate((2.0, 9.0, 3.0))
    ]
    del (single := {**speeds[0], "event": 3, "device": "cuda"})["second_seconds"]
    speeds.append(single)
    start = {"setup_seconds": 61.5, "demo_seconds": 9.0, "precision": 1.0, "recall": 0.99, "test_seconds": 40.0}
    rows = [
        trace_row(),
        trace_row(event=1, precision=0.5, recall=0.75),
        trace_row(seed=1),
        trace_row(seed=1, event=1),
        *speeds,
        {"kind": "start", **start, "tests": "700 passed in 40.00s"},
        {"kind": "bad-input", "case": "rate 1", "code": 2, "message": "Error: 'rate' must be a fraction."},
    ]
    page = page_of(tmp_path, rows)
    tables.write_tables(tmp_path, tmp_path / "README.md")

    assert (tmp_path / "README.md").read_text() == page
    assert page.startswith("# Evidence\n\n") and page.endswith("\n\nThe end.\n")
    for line in (
        "| badnets | digits, 1,437, scratch | 72 (5%) | 2 of 2 | 0.950 | 0.010 | 0.970 | 4 | 0.875 | 0.938 "
        "| 0.500 / 0.750 | 2.0 | – |",
        "| badnets | digits, 1,437 | 5.0% | default | 2 x 2 | 0.875 | 0.938 | 0.500 / 0.750 | 3.0 |",
        "| badnets | digits | 5.0% | 0 | 72 | 0.970 | 1.000 | 0.950 | 0.010 | 1.000/1.000, 0.500/0.750 |",
        "| badnets | digits | 5.0% | 1 | 72 | 0.970 | 1.000 | 0.950 | 0.010 | 1.000/1.000, 1.000/1.000 |",
        "| digits, 1,437 | small_cnn | 5.0% | 3 | 0.10 | 0.30 | 0.20 | 0.10 | 0.30 | 3.00 | 0.20 |",
        "| digits, 1,437, cuda | small_cnn | 5.0% | 1 | 0.10 | 0.20 | 0.20 | 0.10 | 0.30 | 2.00 | – |",
        "| 61.500 | 9.000 | 1.000 | 0.990 | 40.000 | 700 passed in 40.00s |",
        "| rate 1 | 2 | `Error: 'rate' must be a fraction.` |",
    ):
        assert f"{line}\n" in page


def test_natural_mistakes_are_counted(tmp_path: Path) -> None:
    """One line for each twin: the verdicts, the largest separation, the median of the seconds."""
    mistake = {"kind": "clean", "n_found": 0, "statistics": {"separation": 1.5}}
    verdicts = ["no-poison", "no-poison", "poison"]

    page = page_of(tmp_path, [trace_row(**mistake, verdict=said, event=i) for i, said in enumerate(verdicts)])

    assert "| digits, 1,437 | 0 | 3 | 2 | 0 | 1 | 1.5 | 2.0 |\n" in page


def test_other_networks_stand_apart_from_the_usual_one(tmp_path: Path) -> None:
    """In each table; one of their own shows them below the usual one, with what they are sure of."""
    plan = {"attack": "badnets", "dataset": "digits", "rate": 0.05, "model": "flat_mlp", "weight_decay": 0.0}
    said = {"kind": "clean", "statistics": {"separation": 1.5}, "plan": plan}
    rows = [
        trace_row(),
        trace_row(plan=plan, recall=0.5, confidence=0.9),
        trace_row(plan=plan, seed=1, succeeded=False, precision=0.0, confidence=0.7),
        trace_row(**said, verdict="poison"),
        trace_row(**said, verdict="no-poison", event=1),
    ]

    page = page_of(tmp_path, rows)

    for line in (
        "| badnets, digits, 1,437, 0.05 | usual | 1 of 1 | – | 0.970 | 0.950 | 1 | 1.000 | 1.000 | 1.000 / 1.000 "
        "| 0 of 0 |",
        "| badnets, digits, 1,437, 0.05 | flat_mlp, weight decay 0.0 | 1 of 2 | 0.800 | 0.970 | 0.950 | 1 | 1.000 "
        "| 0.500 | 1.000 / 0.500 | 1 of 2 |",
        "| badnets, flat_mlp, weight decay 0.0 | digits, 1,437 | 5.0% | default | 1 x 1 | 1.000 | 0.500 "
        "| 1.000 / 0.500 | 3.0 |",
        "| digits, 1,437, flat_mlp, weight decay 0.0 | 0 | 2 | 1 | 0 | 1 | 1.5 | 2.0 |",
    ):
        assert f"{line}\n" in page


def test_a_victim_the_attack_failed_on_is_listed_and_in_no_mean(tmp_path: Path) -> None:
    """It counts as tried; so does one that gave no event to trace."""
    weak = {"succeeded": False, "attack_success": 0.3, "precision": 0.0, "recall": 0.0}
    none = {"kind": "failed", "rule": "", "event": 0, "error": "The attack failed: a | b."}
    plan = {"attack": "badnets", "dataset": "digits", "rate": 0.05}
    rows = [trace_row(seconds=1.0), trace_row(event=1, seconds=4.0), trace_row(seed=1, **weak)]

    page = page_of(tmp_path, [*rows, {**plan, "plan": plan, "seed": 2, **none}])

    for line in (
        "| badnets | digits, 1,437, scratch | 72 (5%) | 1 of 3 | 0.950 | 0.010 | 0.970 | 2 | 1.000 | 1.000 "
        "| 1.000 / 1.000 | 2.5 | – |",
        "| badnets | digits, 1,437 | 5.0% | default | 1 x 2 | 1.000 | 1.000 | 1.000 / 1.000 | 3.0 |",
        "| badnets | digits | 5.0% | 1 | 72 | 0.970 | 1.000 | 0.300, failed | 0.010 | 0.000/0.000 |",
        "| badnets | digits | 5.0% | 2 |  |  |  |  |  | failed: The attack failed: a \\| b. |",
    ):
        assert f"{line}\n" in page


def test_the_summary_is_one_line_an_attack_over_all_its_data(tmp_path: Path) -> None:
    """Failed victims and the paper's rule are left out; the floor takes both means."""
    rows = [
        trace_row(),
        trace_row(seed=1, precision=0.97),
        trace_row(rate=0.1, recall=0.91),
        trace_row(seed=2, succeeded=False, precision=0.0),
        trace_row(rule="paper", precision=0.0),
        trace_row(attack="trojan", precision=0.983),
        trace_row(attack="bullseye", recall=0.967),
    ]

    page = page_of(tmp_path, rows)

    head, _, *lines = page.split("generated: summary -->\n")[1].split("\n<!--")[0].splitlines()
    assert head.endswith("| at least 0.984 / 0.968 |")
    assert lines == [
        "| badnets | 3 | 3 | 0.990 | 0.970 | 1.000 / 0.910 | yes |",
        "| bullseye | 1 | 1 | 1.000 | 0.967 | 1.000 / 0.967 | no |",
        "| trojan | 1 | 1 | 0.983 | 1.000 | 0.983 / 1.000 | no |",
    ]


def test_an_attack_that_never_succeeded_has_a_line(tmp_path: Path) -> None:
    """Dashes stand for what no victim gave."""
    plan = {"attack": "badnets", "dataset": "cifar10", "rate": 0.0025, "n_train": 2000, "training": "transfer"}
    row = {**plan, "plan": plan, "kind": "failed", "rule": "", "event": 0, "error": "The attack failed."}

    page = page_of(tmp_path, [{**row, "seed": seed} for seed in (0, 1)])

    dashes = "– | – | – | 0 | – | – | – | – | –"
    assert f"| badnets | cifar10, 2,000, transfer | 0.25% | 0 of 2 | {dashes} |\n" in page


def test_attacks_have_a_line_for_each_size_rate_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the figure of the paper where there is one; the paper's rule is no part of it."""
    monkeypatch.setitem(tables.REPORTED, "badnets", "0.99 / 0.98")
    rows = [
        trace_row(),
        trace_row(rule="paper", precision=0.0),
        trace_row(rate=0.1),
        trace_row(n_train=500, plan={"n_train": 500}),
        trace_row(plan={"training": "transfer"}),
    ]

    page = page_of(tmp_path, rows)

    head, _, *lines = page.split("generated: attacks -->\n")[1].split("\n<!--")[0].splitlines()
    assert head.endswith("| the paper's |")
    assert [line.split(" | ")[1:4:2] + line.split(" | ")[8:9] for line in lines] == [
        ["digits, 1,437, scratch", "1 of 1", "1.000"],
        ["digits, 1,437, scratch", "1 of 1", "1.000"],
        ["digits, 1,437, transfer", "1 of 1", "1.000"],
        ["digits, 500, scratch", "1 of 1", "1.000"],
    ]
    assert all(line.endswith("| 0.99 / 0.98 |") for line in lines)
    assert "| badnets, transfer | digits, 1,437 | 5.0% | default |" in page


def test_what_misleads_a_tracer_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Below the same attack without it, where half of the attempts still succeed; tables of attacks leave it out."""
    weak = {"succeeded": False, "attack_success": 0.4, "precision": 0.0, "recall": 0.0}
    spread = [
        trace_row(plan={"options": {"size": 3, "campaigns": 2}}, precision=0.5, n_found=100, n_found_of_others=40),
        trace_row(plan={"options": {"size": 3, "campaigns": 10}}, seed=1, **weak),
        trace_row(plan={"options": {"size": 3, "campaigns": 3}}, **weak | {"attack_success": 0.5}),
        trace_row(plan={"options": {"size": 3, "campaigns": 2, "shown": "all"}}),
    ]
    rows = [trace_row(plan={"options": {"size": 3}}), trace_row(rate=0.1), *spread]

    page = page_of(tmp_path, rows)

    _, _, *lines = page.split("generated: anti-forensics -->\n")[1].split("\n<!--")[0].splitlines()
    numbers = "0.950 | 0.010 | 0.970 | 1"
    assert lines == [
        f"| badnets, digits, 1,437 | – | – | 72 (5%) | 1 of 1 | {numbers} | 1.000 | 1.000 | 1.000 / 1.000 | 1.000 |",
        f"| badnets, digits, 1,437 | dispersal | `campaigns` 2 | 72 (5%) | 1 of 1 | {numbers} | 0.500 | 1.000 "
        "| 0.500 / 1.000 | 0.900 |",
        "| badnets, digits, 1,437 | dispersal | `campaigns` 3 | 72 (5%) | 1 of 1 | 0.500 | 0.010 | 0.970 | 1 | 0.000 "
        "| 0.000 | 0.000 / 0.000 | 0.000 |",
        "| badnets, digits, 1,437 | dispersal | `campaigns` 10 | 72 (5%) | 0 of 1 | 0.400 | 0.010 | 0.970 | 0 | – | – "
        "| – | – |",
        f"| badnets, digits, 1,437 | framing | `shown` all, `campaigns` 2 | 72 (5%) | 1 of 1 | {numbers} | 1.000 "
        "| 1.000 | 1.000 / 1.000 | 1.000 |",
    ]
    assert "| badnets | 2 | 2 | 1.000 | 1.000 |" in page
    assert "| badnets, campaigns 2 | digits | 5.0% | 0 | 72 |" in page
    assert "| badnets, campaigns 10 | digits | 5.0% | 1 | 72 | 0.970 | 1.000 | 0.400, failed |" in page


def test_a_trace_of_several_grids_counts_once(tmp_path: Path) -> None:
    """Whether or not its row names what is usual."""
    (tmp_path / "b.jsonl").write_text(json.dumps(trace_row(plan={"training": "scratch", "options": {}})) + "\n")

    page = page_of(tmp_path, [trace_row(), trace_row(event=1)])

    assert "| badnets | digits, 1,437 | 5.0% | default | 1 x 2 |" in page


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_page_without_its_marks_is_refused(name: str, tmp_path: Path) -> None:
    """A mark that is missing, or the end before the start; the page stays as it was."""
    readme = write_page(tmp_path / "README.md")
    sound = readme.read_text()
    start, end = tables.MARK.format(name), tables.MARK.format(f"end {name}")

    swapped = sound.replace(start, "?").replace(end, start).replace("?", end)
    for broken in (sound.replace(start, ""), sound.replace(end, ""), swapped):
        readme.write_text(broken)
        with pytest.raises(InvalidInputError, match=f"'readme' must hold marks like {start} and {end}"):
            tables.write_tables(tmp_path, readme)
        assert readme.read_text() == broken


def test_a_mark_quoted_in_a_table_is_no_mark(tmp_path: Path) -> None:
    """The table of bad input quotes messages that name marks; wherever it stands, the other tables stay whole."""
    message = f"Error: 'readme' must hold the marks {' and '.join(map(tables.MARK.format, ('traces', 'end traces')))}."
    row = {"kind": "bad-input", "case": "a page without marks", "code": 2, "message": message}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    readme = write_page(tmp_path / "README.md")
    blocks = readme.read_text().split("\n\n")
    readme.write_text("\n\n".join(reversed(blocks)))

    for _ in range(2):
        tables.write_tables(tmp_path, readme)

    page = readme.read_text()
    assert page.count(message) == 1
    assert page.count("| worst trace | clusters tested |") == 1


def test_a_page_may_hold_some_tables_only(tmp_path: Path) -> None:
    """The README shows a few."""
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- generated: start -->\nold\n<!-- generated: end start -->\nb")

    tables.write_tables(tmp_path, readme)

    assert re.fullmatch(r"a\n<!-- \S+ start -->\n\| make .*\n\| --- .*\n<!-- .* -->\nb", readme.read_text())


def test_proof_says_what_training_again_leaves(tmp_path: Path) -> None:
    """Of all events traced, also those that accused nobody; the worst difference to a network never poisoned."""
    row = {"kind": "proof", "attack": "badnets", "dataset": "digits", "training": "scratch", "rate": 0.05, "seed": 0}
    row |= {"n_train": 1437, "success": 1.0, "success_twin": 0.0, "accuracy": 0.9}
    after = {"success_without": 0.01, "success_control": 1.0, "accuracy_without": 0.9, "accuracy_control": 0.9}
    rows = [row, {**row, **after, "result": "proved"}, {**row, **after, "result": "not corrected", "seed": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    readme = write_page(tmp_path / "README.md")

    tables.write_tables(tmp_path, readme)

    figures = "1.000 | 1.000 | 0.010 | 0.000 | +0.010 | 0.900 | 0.900 | 0.900"
    assert f"| badnets | digits, 1,437 | 5% | 2 | 1 of 3 | 0 | {figures} |" in readme.read_text()


def test_a_rule_is_worth_what_becomes_of_traces_without_it(tmp_path: Path) -> None:
    """Worse by more than a hundredth of precision and recall together, or accused; failed attacks on their own."""
    row = {"kind": "ablation, poison", "plan": {"attack": "badnets"}, "seed": 0, "event": 0}
    row |= {"succeeded": True, "verdict": "poison", "n_found": 9, "precision": 1.0, "recall": 0.9}
    failed = {**row, "seed": 1, "succeeded": False}
    mistake = {**row, "kind": "ablation, mistake", "verdict": "no-poison"}
    rule, every = {"rule": "a rule", "decisions": [7, 8]}, {"rule": "", "decisions": []}
    rows = [one | every for one in (row, failed, mistake)]
    rows += [row | rule | {"recall": 0.895}, failed | rule | {"n_found": 0}, mistake | rule | {"verdict": "poison"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    readme = write_page(tmp_path / "README.md")

    tables.write_tables(tmp_path, readme)

    text = readme.read_text()
    assert "| all rules | – | 1 | – | – | 1 | – | – | 1 | – | – |" in text
    assert "| a rule | 0007, 0008 | 1 | 0 | 0 | 1 | 1 | 0 | 1 | 1 | 0 |" in text


def test_a_page_without_any_mark_is_refused(tmp_path: Path) -> None:
    """It is another page than the one meant."""
    (tmp_path / "README.md").write_text("words")

    with pytest.raises(InvalidInputError, match=r"'readme' must hold marks like .*README\.md'\)\. Add both"):
        tables.write_tables(tmp_path, tmp_path / "README.md")
