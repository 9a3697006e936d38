"""Put measured figures into results.md: every block there is made from a run's own files, by one command each.

    python docs/results.py report debian runs/debian-report
    python docs/results.py sweep debian runs/debian-sweep
    python docs/results.py fast debian runs/debian-fast runs/debian-fast-control runs/debian-bench
    python docs/results.py tutorial nni benchmarks/nni_tutorial.json

Each writes the block of that name between its two marks, and its picture, if it has one, beside the page; the last
one's page is classification.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.artifacts.manifest import read_manifest
from secateur.bench_folder import BENCH
from secateur.files import read_json, write_text
from secateur.report.picture import draw
from secateur.report.sections import groups_text, markdown_table
from secateur.report.sweep import cells_table, reading
from secateur.report.table import (
    all_entries,
    bytes_text,
    costs,
    figure_text,
    main_metric,
    ratio_text,
    seconds_text,
    share_text,
)
from secateur.sweeping import SWEEP

# The author's own run, as his repository tells it: ROUGE-Lsum right after pruning and after retraining, 20 tokens.
THEIRS = {
    "self_attention 0.9": (0.0343, 0.2311),
    "cross_attention 0.4": (0.0137, 0.2294),
    "feed_forward 0.7": (0.0146, 0.2253),
    "lm_head 0.8": (0.0493, 0.2253),
}
THEIR_DENSE, THEIR_COUNTED = 0.2379, 0.2626112
PAGE = Path(__file__).with_name("results.md")
Manifest = Mapping[str, Any]


def replace_block(page: str, name: str, text: str) -> str:
    r"""Write a block between its two marks.

    Args:
        page: Markdown with `<!-- NAME -->` and `<!-- /NAME -->`.
        name: of the block.
        text: its new content.

    Returns:
        The page.

    Raises:
        SystemExit: the page has no such block.

    >>> replace_block("a\n<!-- x -->\nold\n<!-- /x -->\nb\n", "x", "new")
    'a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n'
    """
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not marks.search(page):
        raise SystemExit(f"The page has no block named {name}: write <!-- {name} --> and <!-- /{name} --> into it.")
    return marks.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", page)


def report_block(manifest: Manifest, picture: str) -> str:
    """Lay out a run of prunings as the report did: counts, quality before and after retraining, seconds.

    Args:
        manifest: of a run of which every pruning was measured and retrained.
        picture: the file beside the page.

    Returns:
        Markdown.
    """
    entries = all_entries(manifest)
    found, metric, named = costs(manifest), main_metric(manifest), {entry["name"]: entry for entry in entries}
    given = found[0].before
    rows = [["dense", "1.0", "1.0", figure_text(given), "", "", ""]]
    for cost in found:
        pruned = named[cost.stage]
        after = entries[entries.index(pruned) + 1]
        rows.append(
            [
                groups_text(cost),
                ratio_text(pruned["counts"]["counted_ratio"]),
                ratio_text(after["counts"]["stored_ratio"]),
                f"{figure_text(cost.pruned, interval=False)} → {figure_text(cost.retrained)}",
                share_text(_kept(given, cost.retrained)),
                f"{after['train']['epochs']:.2f}",
                seconds_text(pruned["seconds"] + after["seconds"]),
            ]
        )
    header = ["after", "counted", "stored", f"{metric}, pruned → retrained", "of dense", "epochs", "time"]
    data, last = manifest["data"]["rows"], entries[-1]
    return "\n\n".join(
        [
            f"{data['validation']:,} validation rows, 95 % intervals. Time is of both stages, evaluation included.",
            markdown_table(header, rows),
            f"At the end, on {data[last['split']]:,} {last['split']} rows: {_figures(last)}.",
            f"![{metric} against the counts, stage by stage]({picture})",
            _machine(manifest["environment"], manifest["seed"]),
        ]
    )


def sweep_block(content: Manifest, picture: str) -> str:
    """Lay out a sweep: the sentence, the table, the picture."""
    about = f"{content['rows']:,} rows of {content['split']}. {reading(content['cells'])}"
    shown = f"![Quality against latency]({picture})"
    return "\n\n".join([about, cells_table(content), shown, _machine(content["environment"])])


def fast_block(run: Manifest, control: Manifest, bench: Manifest, picture: str) -> str:
    """Lay out what was cut and shipped beside the control: dense, given the same extra training and the same export.

    Args:
        run: its last stage is measured on test data.
        control: the same.
        bench: of the dense model and of what the run and its control exported.
        picture: the file beside the page.

    Returns:
        Markdown.
    """
    rows = []
    for name, manifest in (("cut, int8", run), ("control, int8", control)):
        entry = all_entries(manifest)[-1]
        counts = entry["counts"]
        rows.append([name, _figures(entry), f"{counts['num_parameters']:,}", bytes_text(counts["num_bytes"])])
    last, metric = all_entries(run)[-1]["split"], main_metric(run)
    quality = markdown_table(["", f"{run['data']['rows'][last]:,} {last} rows", "parameters", "bytes"], rows)
    head = bench["rows"][0]
    same = [row for row in bench["rows"] if (row["batch"], row["threads"]) == (head["batch"], head["threads"])]
    speed = markdown_table(
        ["model", "engine", "weights", "bytes", "tokens a text", "ms", "p90", "times faster", metric],
        [
            [
                f"`{row['model']}`",
                row["engine"],
                f"`{(row['hash'] or '-')[:12]}`",
                bytes_text(row["num_bytes"]),
                f"{row['tokens_per_text']:.1f}",
                f"{row['latency_ms']:.1f}",
                f"{row['latency_p90_ms']:.1f}",
                "-" if row["times_faster"] is None else f"{row['times_faster']:.2f}",
                figure_text(row["metrics"][metric]) if metric in row["metrics"] else "-",
            ]
            for row in same
        ],
    )
    length = f"{'exactly' if bench['exactly'] else 'at most'} {bench['new_tokens']} new tokens"
    about = (
        f"Milliseconds: {bench['inputs']}, {length}, batch {head['batch']}, {head['threads']} thread(s); times faster: "
        f"than the fastest engine of `{bench['dense']}`."
    )
    shown = f"![Quality against milliseconds]({picture})"
    return "\n\n".join([quality, about, speed, shown, _machine(bench["environment"], threads=False)])


def beside_block(g2p: Manifest, debian: Manifest) -> str:
    """Lay out the report's own figures beside those of two runs of its recipe.

    Args:
        g2p: phoneme error, lower is better.
        debian: ROUGE-Lsum, higher is better.

    Returns:
        Markdown.
    """
    runs = [(costs(manifest), main_metric(manifest)) for manifest in (g2p, debian)]
    rows = [["dense", f"{THEIR_DENSE}", *(figure_text(found[0].before, interval=False) for found, _ in runs)]]
    for index, (group, (pruned, retrained)) in enumerate(THEIRS.items()):
        row = [group, f"{pruned} → {retrained} ({share_text(retrained / THEIR_DENSE)})"]
        for found, _ in runs:
            if groups_text(found[index]) != group:
                raise SystemExit(f"{groups_text(found[index])}: is not the report's group {group}.")
            ends = [figure_text(figure, interval=False) for figure in (found[index].pruned, found[index].retrained)]
            row.append(f"{' → '.join(ends)} ({share_text(_kept(found[0].before, found[index].retrained))})")
        rows.append(row)
    ratios = [ratio_text(all_entries(manifest)[-1]["counts"]["counted_ratio"]) for manifest in (g2p, debian)]
    rows.append(["counted at the end", ratio_text(THEIR_COUNTED), *ratios])
    header = ["after", "the report: T5-small, BillSum, ROUGE-Lsum", f"g2p, {runs[0][1]} (lower is better)"]
    return markdown_table([*header, f"Debian, {runs[1][1]}"], rows)


def tutorial_block(content: Manifest) -> str:
    """Lay out what NNI's tutorial came to here, beside NNI's own figures.

    Args:
        content: of benchmarks/nni_tutorial.json.

    Returns:
        Markdown.
    """
    header = ["recipe", "encoder", "all", "parameters", "accuracy", "macro-F1", "of dense", "NNI's, of its dense"]
    rows = [
        [
            f"`{row['name']}`",
            share_text(row["encoder_sparsity"]),
            share_text(row["total_sparsity"]),
            f"{row['parameters'] / 1e6:.2f} M",
            figure_text(row["accuracy"]),
            figure_text(row["macro_f1"]),
            share_text(row["share_of_dense"]),
            f"{row['nni_accuracy']} ({share_text(row['nni_share_of_dense'])})",
            f"{row['ms_single']:.2f}",
            f"{row['ms_batch']:.1f}",
        ]
        for row in content["rows"]
    ]
    told = (
        f"{content['test_rows']:,} test rows, 95 % intervals; the last fifth of the dense training changed the "
        f"validation accuracy by {share_text(content['dense_last_fifth_gain'])}. Encoder and all: what is gone of the "
        f"layers' parameters, and of all. NNI's: {content['nni']}. Milliseconds: median of a test text alone, and of "
        f"{content['batch']} together, tokenization included, models in turn."
    )
    batch = f"ms, {content['batch']}"
    return "\n\n".join([told, markdown_table([*header, "ms, 1", batch], rows), _machine(content["environment"])])


def _kept(dense: Mapping[str, Any], figure: Mapping[str, Any] | None) -> float | None:
    return figure["value"] / dense["value"] if figure and dense["value"] else None


def _figures(entry: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {figure_text(figure)}" for name, figure in entry["metrics"].items())


def _machine(environment: Mapping[str, Any], seed: int | None = None, *, threads: bool = True) -> str:
    known = [environment["processor"], *([f"{environment['threads']} threads"] if threads else [])]
    known += [f"{name} {environment[name]}" for name in ("torch", "transformers")]
    return ", ".join(known + ([f"seed {seed}"] if seed is not None else [])) + "."


def read_run(folder: Path, metric: str = "rougeLsum") -> Manifest:
    """Read the manifest of a run that is complete; where `metric` was measured, it comes first. Else SystemExit."""
    manifest = read_manifest(folder)
    if manifest["status"] != "complete":
        raise SystemExit(f"{folder}: is not complete. Go on with: secateur run {folder} --resume")
    for entry in all_entries(manifest):
        figures = entry.get("metrics") or {}
        if metric in figures:
            entry["metrics"] = {metric: figures[metric], **figures}  # type: ignore[index]  # read for this page alone
    return manifest


def main() -> None:
    """Read the command line and write one block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["report", "beside", "sweep", "fast", "tutorial"])
    parser.add_argument("name", help="of the block: report-NAME and so on")
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="the run; the g2p run and the Debian run; the sweep; the run, its control and its bench; the file",
    )
    given = parser.parse_args()
    block = f"{given.kind}-{given.name}"
    page = PAGE.with_name("classification.md") if given.kind == "tutorial" else PAGE
    picture = PAGE.with_name(f"{block}.png")
    if given.kind == "report":
        manifest = read_run(given.folders[0])
        text, drawn = report_block(manifest, picture.name), None
        draw(dict(manifest), picture)
    elif given.kind == "beside":
        text, drawn = beside_block(*map(read_run, given.folders)), None
    elif given.kind == "sweep":
        text, drawn = sweep_block(read_json(given.folders[0] / SWEEP), picture.name), given.folders[0] / "sweep.png"
    elif given.kind == "tutorial":
        text, drawn = tutorial_block(read_json(given.folders[0])), None
    else:
        run, control, bench = given.folders
        measured = read_json(bench / BENCH)
        text = fast_block(read_run(run), read_run(control), measured, picture.name)
        drawn = bench / "bench.png"
    write_text(page, replace_block(page.read_text(encoding="utf-8"), block, text))
    if drawn is not None:
        shutil.copyfile(drawn, picture)
    print(f"{page}: {block}")


if __name__ == "__main__":
    main()
