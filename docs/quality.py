"""Put the quality benchmarks' figures into quality.md: each block is made from what a benchmark wrote.

    python docs/quality.py contest g2p                       # benchmarks/quality/summary.json
    python docs/quality.py scores g2p runs/scores/g2p        # benchmarks/quality/scores.py
    python docs/quality.py search g2p runs/search-g2p        # secateur search, beside recipes/g2p/best.yaml

Each writes the block of that name between its two marks, and its picture, if it has one, beside the page.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import replace_block

from secateur.files import read_json, write_text
from secateur.recipe.load import load_recipe
from secateur.report.drawing import BLACK, BLUE, GREY, VERMILION, new_figure, plain, quality_label, write_png
from secateur.report.sections import markdown_table
from secateur.report.table import figure_text, ratio_text
from secateur.search.budget import told_budget
from secateur.search.curves import Curve
from secateur.sensing import curves_of

PAGE = Path(__file__).with_name("quality.md")
SUMMARY = Path(__file__).parents[1] / "benchmarks" / "quality" / "summary.json"
JUDGES = {"beside its control": "control", "beside the report's way with more": "report"}  # column -> arms' names
Entry = Mapping[str, Any]


def beside(entry: Entry, others: str) -> str:
    """Say how far an arm is from one of others: in points for an error rate, as a share for a score.

    >>> distance = {"value": 0.25, "low": -0.1, "high": 0.6}
    >>> beside({"beside": {"report_full": distance}, "higher_is_better": False}, "report")
    '+0.25 points [-0.10, +0.60]'
    >>> beside({"beside": {"control_tenth": distance}, "higher_is_better": True}, "control")
    '25.0 % [-10.0, 60.0]'
    """
    found = next((distance for name, distance in entry["beside"].items() if name.startswith(others)), None)
    if found is None:
        return ""
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if entry["higher_is_better"]:
        return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:+.2f} points [{low:+.2f}, {high:+.2f}]"


def contest_block(part: Mapping[str, Any], environment: str, picture: str) -> str:
    """Lay out the arms of a task: budget, counts, figure with its interval, every seed, distance from the control."""
    arms: Mapping[str, Entry] = part["arms"]
    rows = []
    for arm, entry in arms.items():
        figure = figure_text({**entry, "value": entry["mean"]})
        seeds = ", ".join(figure_text({**entry, "value": value}, interval=False) for value in entry["per_seed"])
        ratios = [ratio_text(entry[key]) for key in ("counted_ratio", "stored_ratio")]
        rows.append(
            [
                f"`{arm}`",
                f"{entry['epochs']:g}",
                *ratios,
                figure,
                seeds,
                *(beside(entry, others) for others in JUDGES.values()),
            ]
        )
    metric = next(iter(arms.values()))["metric"]
    header = ["arm", "epochs", "counted", "stored", f"{metric}, test", "each seed", *JUDGES]
    return "\n\n".join(
        [
            f"{part['rows']:,} test rows; 95 % intervals over rows, all seeds' outputs of a row together.{environment}",
            markdown_table(header, rows),
            f"![{metric} of every arm]({picture})",
        ]
    )


def draw_contest(part: Mapping[str, Any], path: Path) -> None:
    """Draw every arm's mean, interval and seeds, the best on top."""
    arms: Mapping[str, Entry] = part["arms"]
    first = next(iter(arms.values()))
    ordered = sorted(arms, key=lambda arm: arms[arm]["mean"], reverse=not first["higher_is_better"])
    figure = new_figure(8, 1.2 + 0.42 * len(arms))
    axes = figure.subplots()
    for height, arm in enumerate(ordered):
        entry = arms[arm]
        unpruned = arm.startswith(("control", "dense"))
        colour = (
            GREY
            if unpruned
            else VERMILION
            if arm.startswith(("ours", "logits", "fisher", "tensor", "search"))
            else BLUE
        )
        axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2)
        axes.plot(entry["mean"], height, "o", color=colour, markersize=8)
        axes.plot(entry["per_seed"], [height - 0.22] * len(entry["per_seed"]), "|", color=BLACK, markersize=7)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"{quality_label(first['metric'], first)}; bar: 95 % over rows; strokes: seeds")
    plain(axes)
    write_png(figure, path)


def scores_block(content: Mapping[str, Any], metric: str, picture: str) -> str:
    """Lay out quality right after pruning, by score, scope and sparsity."""
    cells = content["cells"]
    dense = next(cell for cell in cells if cell["score"] == "dense")["metrics"]
    sparsities = sorted({cell["sparsity"] for cell in cells if cell["score"] != "dense"})
    found: dict[tuple[str, str], dict[float, str]] = {}
    for cell in cells:
        if cell["score"] != "dense":
            line = found.setdefault((cell["score"], cell["scope"]), {})
            line[cell["sparsity"]] = figure_text(cell["metrics"][metric])
    rows = [
        [f"`{score}`", scope, *(line.get(each, "") for each in sparsities)] for (score, scope), line in found.items()
    ]
    known = content["environment"]
    machine = f"{known['processor']}, {known['threads']} threads, torch {known['torch']}."
    return "\n\n".join(
        [
            f"Dense: {metric} {figure_text(dense[metric])} on validation data; nothing is retrained. {machine}",
            markdown_table(["score", "scope", *(f"{each:.0%} removed" for each in sparsities)], rows),
            f"![{metric} by score]({picture})",
        ]
    )


def search_block(facts: Mapping[str, Any], curves: Sequence[Curve], by_hand: Mapping[str, float]) -> str:
    """Lay out what a search found beside the sparsities that were chosen by hand, one a role.

    Args:
        facts: of search.json.
        curves: that it spent its budget along.
        by_hand: role -> share removed.

    Returns:
        Markdown.
    """
    used = [curve for curve in curves if curve.name in facts["sparsities"]]
    rows, totals = [], [0.0, 0.0]
    for curve in used:
        shares = (by_hand[curve.name.split()[-1]], facts["sparsities"][curve.name])
        rises = [curve.rise_at(min(share, curve.hull[-1][0])) for share in shares]
        totals = [total + rise for total, rise in zip(totals, rises, strict=True)]
        told = [f"{share:.2f}" for share in shares] + [f"{rise:.3f}" for rise in rises]
        rows.append([curve.name, f"{curve.num_elements:,}", *told])
    rows.append(["together", f"{sum(curve.num_elements for curve in used):,}", "", "", *(f"{x:.3f}" for x in totals)])
    header = ["group", "weights", "by hand", "found", "costs by hand", "found"]
    cost = (
        f"Costs are rises of the loss, in nats a token over the dense model's {facts['dense_loss']:.3f}"
        if facts["by"] == "loss"
        else "Costs are divergences from the dense model's outputs, in nats a token"
    )
    return "\n\n".join(
        [
            f"For {told_budget(facts['budget'])}. {cost}, before any retraining, of each group pruned alone, "
            "and their sum.",
            markdown_table(header, rows),
        ]
    )


def hand_picked(task: str) -> dict[str, float]:
    """Read the sparsities of a task's best.yaml, which are the report's."""
    prune = load_recipe(PAGE.parents[1] / "recipes" / task / "best.yaml").stages[0].prune
    assert prune is not None
    return {str(group.role): float(group.sparsity or 0.0) for group in prune.groups}


def main() -> None:
    """Read the command line and write one block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["contest", "scores", "search"])
    parser.add_argument("task")
    parser.add_argument("folder", nargs="?", type=Path, help="of the scores' cells, or of the search")
    parser.add_argument("--machine", default="", help="what the arms were run on, for the contest's block")
    given = parser.parse_args()
    block = f"{given.kind}-{given.task}"
    picture = PAGE.with_name(f"{block}.png")
    if given.kind == "contest":
        part = read_json(SUMMARY)["tasks"][given.task]
        draw_contest(part, picture)
        text = contest_block(part, f" {given.machine}" if given.machine else "", picture.name)
    elif given.kind == "search":
        facts = read_json(given.folder / "search.json")
        curves = curves_of(read_json(given.folder / "curves" / "sensitivity.json"), facts["by"])
        text = search_block(facts, curves, hand_picked(given.task))
    else:
        metric = read_json(SUMMARY)["tasks"][given.task]["arms"]["dense"]["metric"]  # the contest's
        text = scores_block(read_json(given.folder / "scores.json"), metric, picture.name)
        shutil.copyfile(given.folder / "scores.png", picture)
    write_text(PAGE, replace_block(PAGE.read_text(encoding="utf-8"), block, text))
    print(f"{PAGE}: {block}")


if __name__ == "__main__":
    main()
