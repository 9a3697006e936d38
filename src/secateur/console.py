"""What the command line shows: progress while a run is at work, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from secateur.report.sensitivity import reading as sensitivity_reading
from secateur.report.sweep import reading
from secateur.report.table import auto_class, summary_rows
from secateur.reporter import Reporter
from secateur.search.budget import told_budget, told_failures

PLAIN_WIDTH = 140  # columns where there is no terminal to ask

out = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
QUIET_SECONDS = 15.0  # without a terminal, progress is a line this often


def number(value: float | None, digits: int = 4) -> str:
    """Write a figure for a table, or a dash.

    >>> number(0.26261123), number(None)
    ('0.2626', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def megabytes(count: int | None) -> str:
    """Write bytes as megabytes of 1,000,000 bytes.

    >>> megabytes(242_041_896)
    '242.0 MB'
    """
    return "-" if count is None else f"{count / 1e6:.1f} MB"


def figure(entry: Mapping[str, Any]) -> str:
    """Write a metric with its interval.

    >>> figure({"value": 11.6, "low": 11.2, "high": 12.0, "unit": "%"})
    '11.60 % [11.20, 12.00]'
    """
    digits = 2 if entry.get("unit") else 4
    unit = f" {entry['unit']}" if entry.get("unit") else ""
    interval = f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]" if entry.get("low") is not None else ""
    return f"{entry['value']:.{digits}f}{unit}{interval}"


class ConsoleReporter(Reporter):
    """Shows stages, steps, loss and time left: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.live = out.is_terminal
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.what, self.first = "", 0
        self.said = self.started = time.monotonic()

    def run_started(self, recipe: Any, folder: Path, plan: Any) -> None:
        """Name the model and the folder."""
        out.print(f"[bold]{recipe.model}[/bold] -> {folder}")
        out.print(f"{plan.dense_parameters:,} parameters, {len(recipe.stages)} stages")
        if plan.head:
            out.print(f"Head: {plan.head}.")
        out.print("")

    def stage_started(self, index: int, num_stages: int, name: str, kind: str) -> None:
        """Begin a bar."""
        self.close()
        out.print(f"[bold]{index}/{num_stages} {name}[/bold] ({kind})")
        self.what, self.said = "", time.monotonic()
        if self.live:
            self._begin()

    def _begin(self) -> None:
        """Show an empty bar."""
        columns = ("   {task.description}", "{task.completed:.0f}/{task.total:.0f}", "{task.fields[note]}")
        texts = [TextColumn(text) for text in columns]
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(texts[0], BarColumn(), *texts[1:], *times, console=out, transient=True)
        self.bar.start()
        self.task = None

    def stage_skipped(self, name: str) -> None:
        """Say what was done before."""
        out.print(f"[dim]{name}: done before[/dim]")

    def noted(self, note: str) -> None:
        """Say it."""
        out.print(f"   Note: {note}", markup=False)

    def training(self, progress: Any) -> None:
        """Move the bar: steps and loss."""
        loss = f"loss {progress.loss:.3f}" if progress.loss is not None else ""
        self._show("training", progress.step, progress.num_steps, loss)

    def labelling(self, done: int, total: int) -> None:
        """Move the bar: rows that have a pseudo-label."""
        self._show("pseudo-labels", done, total, "")

    def evaluating(self, done: int, total: int) -> None:
        """Move the bar: rows."""
        self._show("evaluating", done, total, "")

    def predicting(self, done: int, total: int) -> None:
        """Move the bar: texts that have an output, with no stage around them."""
        self._show("predicting", done, total, "")

    def reading(self, what: str, done: int, total: int) -> None:
        """Move the bar: megabytes of a folder that is worked through, with no stage around them."""
        if self.live and self.bar is None:
            self._begin()
        self._show(what, done // 10**6, total // 10**6, "MB")

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        if what != self.what:
            self.what, self.first, self.started = what, done, time.monotonic()
        if self.bar:
            self._move(self.bar, what, done, total, note)
        elif time.monotonic() - self.said > QUIET_SECONDS:
            self.said = time.monotonic()
            rate = (self.said - self.started) / max(done - self.first, 1)
            left = f" about {rate * (total - done):.0f} s left" if done > self.first else ""
            out.print(f"   {what} {done}/{total} {note}{left}")

    def _move(self, bar: Progress, what: str, done: int, total: int, note: str) -> None:
        if self.task is None or bar.tasks[-1].description != what:
            if self.task is not None:
                bar.update(self.task, visible=False)
            self.task = bar.add_task(what, total=total, note=note)
        bar.update(self.task, completed=done, total=total, note=note)

    def close(self) -> None:
        """End the live bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """Print what the stage came to."""
        self.close()
        counts = entry["counts"]
        metrics = ", ".join(f"{name} {figure(value)}" for name, value in entry["metrics"].items())
        out.print(f"   {metrics}")
        out.print(
            f"   counted {counts['counted_ratio']:.7f}, stored {counts['stored_ratio']:.4f}, "
            f"{megabytes(counts['num_bytes'])}, {entry['seconds']:.0f} s"
        )

    def run_finished(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Print the table, and where everything lies."""
        self.close()
        out.print()
        print_summary(manifest)
        load = "secateur.load" if manifest.get("ragged") else f"{auto_class(manifest)}.from_pretrained"
        out.print(f"\nThe run:   {folder}\nThe model: {folder / 'model'}   ({load})")
        out.print(f"The card:  {folder / 'card.md'}")


def print_summary(manifest: Mapping[str, Any]) -> None:
    """Print the table dense / pruned / retrained of a run; where a column a metric finds no room, a line each."""
    rows = summary_rows(manifest)
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    table = Table(title="each row is one artefact; 95 % intervals in brackets", title_justify="left", title_style="dim")
    for column in ("", "split", *names, "counted", "stored", "parameters", "bytes"):
        table.add_column(column, justify="left" if column in ("", "split") else "right")
    for row in rows:
        counts = row.counts
        table.add_row(
            row.label,
            row.split,
            *(figure(row.metrics[name]).replace(" [", "\n[") if name in row.metrics else "-" for name in names),
            number(counts.get("counted_ratio"), 4),
            number(counts.get("stored_ratio"), 4),
            f"{counts.get('num_parameters', 0):,}",
            megabytes(counts.get("num_bytes")),
        )
    fits = table.__rich_measure__(out, out.options.update(width=10_000)).maximum <= out.width
    out.print(table if fits else _narrow_summary(rows, table.title))


def _narrow_summary(rows: Sequence[Any], title: Any) -> Table:
    table = Table(title=title, title_justify="left", title_style="dim", show_lines=True)
    for column in ("", "figures", "size"):
        table.add_column(column)
    for row in rows:
        counts = row.counts
        table.add_row(
            f"{row.label}\n{row.split}",
            "\n".join(f"{name} {figure(value)}" for name, value in row.metrics.items()),
            f"counted {number(counts.get('counted_ratio'), 4)}\nstored {number(counts.get('stored_ratio'), 4)}\n"
            f"{counts.get('num_parameters', 0):,} parameters\n{megabytes(counts.get('num_bytes'))}",
        )
    return table


def difference(entry: Mapping[str, Any], unit: str) -> str:
    """Write a difference with its sign, its interval and its verdict.

    >>> difference({"value": -1.5, "low": -2.0, "high": -1.0, "verdict": "better"}, "%")
    '-1.50 [-2.00, -1.00] better'
    """
    digits = 2 if unit else 4
    interval = f" [{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]" if entry.get("low") is not None else ""
    return f"{entry['value']:+.{digits}f}{interval} {entry['verdict'] or ''}".rstrip()


def print_comparison(comparison: Any) -> None:
    """Print figures side by side; under each, its difference from the first and a verdict."""
    first = comparison.entries[0]
    where = f"{comparison.rows:,} rows" + (f" of {comparison.split}" if comparison.split else "")
    title = f"{where}; 95 % intervals in brackets; below each figure its difference from {escape(first.model)}"
    table = Table(title=title, title_justify="left", title_style="dim")
    table.add_column("")
    for entry in comparison.entries:
        name = escape(entry.model)  # a folder may be called [bold]
        table.add_column(f"{name}\n{entry.stage}" if entry.stage else name, justify="right")
    for name, value in first.figures.items():
        cells = [figure(vars(value))]
        for entry in comparison.entries[1:]:
            told = difference(vars(entry.differences[name]), value.unit)
            cells.append(f"{figure(vars(entry.figures[name]))}\n{told}")
        table.add_row(escape(name), *cells)
    out.print(table)
    for note in comparison.notes:
        out.print(note, markup=False)


def print_sweep(content: Mapping[str, Any], folder: str) -> None:
    """Print a sweep's cells, its sentence, and where it lies.

    Args:
        content: what sweep.json holds.
        folder: the sweep's folder.
    """
    cells = content["cells"]
    table = Table(title=f"{content['model']}, {content['rows']:,} rows of {content['split']}")
    for column in ("beams", "new tokens", *cells[0]["metrics"], "ms a text", "latency ms"):
        table.add_column(column, justify="right")
    for cell in cells:
        figures = [figure(value) for value in cell["metrics"].values()]
        times = [f"{cell['ms_per_text']:,.1f}", f"{cell['latency_ms']:,.0f}"]
        table.add_row(str(cell["num_beams"]), str(cell["max_new_tokens"]), *figures, *times)
    out.print(table)
    out.print(f"{reading(cells)}\nThe sweep: {folder}")


def print_sensitivity(content: Mapping[str, Any], folder: str) -> None:
    """Print what each group costs, the sentence, and where it lies.

    Args:
        content: what sensitivity.json holds.
        folder: its folder.
    """
    cells = content["cells"]
    sparsities = sorted({cell["sparsity"] for cell in cells})
    table = Table(title=f"rise of the loss, dense {content['dense_loss']:.4f} nats per target token, by sparsity")
    table.add_column("group")
    for sparsity in sparsities:
        table.add_column(f"{sparsity:g}", justify="right")
    for name in dict.fromkeys(cell["name"] for cell in cells):
        rises = {cell["sparsity"]: cell["rise"] for cell in cells if cell["name"] == name}
        shown = (f"{rises[sparsity]:+.4f}" if sparsity in rises else "-" for sparsity in sparsities)
        table.add_row(name, *shown)
    out.print(table)
    out.print(f"{sensitivity_reading(content)}\nThe measurement: {folder}")


def print_search(facts: Mapping[str, Any], folder: str) -> None:
    """Print the sparsities that a search chose, why, and the recipe to run.

    Args:
        facts: what search.json holds.
        folder: its folder.
    """
    if "latency_ms" in facts:
        told = f"{facts['latency_ms']:g} ms: {facts['shape']} takes {facts['ms']:.3g}, dense {facts['dense_ms']:.3g}"
    else:
        told = f"{told_budget(facts['budget'])}: {facts['num_removed']:,} weights go"
    table = Table(title=told)
    table.add_column("group")
    table.add_column("sparsity", justify="right")
    table.add_column("why")
    for name, sparsity in facts["sparsities"].items():
        table.add_row(
            name, f"{sparsity:.3f}", facts["reasons"].get(name, "it costs too much, and stays").rpartition(": ")[2]
        )
    out.print(table)
    if trials := facts["trials"]:
        own = "failed" if trials["start"] is None else f"{trials['start']:g}"
        out.print(f"{trials['num_trials']} trials: best {trials['value']:g}, the prediction's own {own}")
        for line in told_failures(trials):
            out.print(line, markup=False, soft_wrap=True)
    out.print(f"Run it:  secateur run {folder}/recipe.yaml --out {folder}-run", soft_wrap=True)


def print_plan(plan: Any) -> None:
    """Print a plan: per stage what goes and what is left."""
    table = Table(title=f"{plan.family}: {plan.dense_parameters:,} parameters", title_justify="left")
    table.add_column("stage")
    for column in ("counted", "stored packed", "stored plain", "parameters", "bytes", "steps", "memory"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        table.add_row(
            "\n".join([stage.name, *(f"  {_removes(group)}" for group in stage.groups)]),
            number(stage.counted_ratio, 7),
            number(stage.stored_ratio_packed),
            number(stage.stored_ratio_plain),
            f"{stage.num_parameters:,}",
            megabytes(stage.num_bytes),
            f"{stage.steps:,}" if stage.steps else "-",
            megabytes(stage.memory_bytes) if stage.trains else "-",
        )
    out.print(table)
    if plan.head:
        out.print(f"Head: {plan.head}.")
    for note in plan.notes:
        out.print(f"Note: {note}", markup=False)
    out.print(
        f"Disk: at most {megabytes(plan.disk_bytes)}. Memory: weights, gradients, optimizer; activations come on top."
    )


def _removes(group: Any) -> str:
    tie = f", tie: {group.tie}" if group.tie else ""
    about = "" if group.exact else "about "
    stack = f"{group.stack} " if group.stack else ""
    return f"{stack}{group.role}{tie}: {about}{group.num_removed:,} of {group.num_elements:,}"


def print_model(description: Mapping[str, Any]) -> None:
    """Print a model's tree by stack, layer and role."""
    counts, macs = description["counts"], description["macs"]
    size = f"{counts['num_parameters']:,} parameters, {megabytes(counts['num_bytes'])}"
    tree = Tree(f"[bold]{description['family']}[/bold] {size}")
    branches: dict[tuple[Any, ...], Tree] = {}
    for weight in description["weights"]:
        branch = tree
        where: tuple[Any, ...] = ()
        for part in (weight["stack"], None if weight["layer"] is None else f"layer {weight['layer']}", weight["role"]):
            if part is None:
                continue
            where = (*where, part)
            if where not in branches:
                branches[where] = branch.add(str(part))
            branch = branches[where]
        shape = " x ".join(map(str, weight["shape"]))
        tie = f"  = {weight['tied_to']}" if weight["tied_to"] else f"  {100 * weight['share']:.2f} %"
        sparsity = "" if weight["sparsity"] is None else f"  sparsity {weight['sparsity']:.4f}"
        branch.add(f"{weight['path']}  {shape}  {weight['num_elements']:,}{tie}{sparsity}")
    out.print(tree)
    out.print(
        f"MACs at {description['source_tokens']} source and {description['new_tokens']} new tokens: "
        f"{macs['per_source_token']:,.0f} per source token, {macs['per_generated_token']:,.0f} per generated token, "
        f"{macs['total']:,.0f} in all"
    )
    ratios = f"counted {number(counts['counted_ratio'])}, stored {number(counts['stored_ratio'])}, "
    out.print(f"{ratios}{size}")
    if run := description.get("run_counts"):
        out.print(
            f"In its run, against the dense model: counted {number(run['counted_ratio'])}, "
            f"stored {number(run['stored_ratio'])}"
        )
