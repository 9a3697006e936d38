"""The house has floors: a room imports lower ones only, and reading a recipe needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "secateur"
FLOORS = [
    {"errors", "registry", "files", "quiet", "processes", "nni_keys"},
    {"recipe", "anatomy", "tasks"},
    {"masks"},
    {"retrain", "surgery", "evaluation"},
    {"artifacts"},
    {"exports", "interop", "report"},
    {"search"},
    {
        "pipeline",
        "stages",
        "pruning",
        "gradual",
        "nni_stage",
        "teaching",
        "layer_maps",
        "rewinding",
        "labelling",
        "probe",
        "losses",
        "dues",
        "sensing",
        "searching",
        "latency",
        "shape_costs",
        "shape_timer",
        "short_runs",
        "shaping",
        "shipping",
        "artefact",
        "making",
        "importing",
        "state",
        "run_folder",
        "reporter",
        "folder_pruning",
        "shard_choice",
        "shard_recipe",
        "planning",
        "plan_groups",
        "fields",
        "given",
        "sweeping",
        "benching",
        "bench_entries",
        "bench_folder",
        "bench_memory",
        "bench_timing",
        "measure",
        "prediction",
        "comparison",
        "console",
        "cli",
        "__init__",
        "__main__",
    },
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NAMES = "recipe.names"  # words only: whoever offers a choice may use them
NAMES_READERS = {"anatomy", "tasks", "masks", "retrain", "surgery", "evaluation", "artifacts", "exports"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = file
    return found


def imports_of(file: Path) -> set[str]:
    """What a file imports from the package, wherever in the file; for `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the room"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("secateur.") for name in found if name.startswith("secateur.")}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: {item for item in imports_of(file) if item in known} - {name} for name, file in known.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_all_modules_are_seen_and_have_a_floor() -> None:
    known = modules()
    assert len(known) >= 60 and len(known) == len(list(SOURCE.rglob("*.py")))
    assert {room(name) for name in known} <= FLOOR_OF.keys()
    for expected in ("recipe.names", "anatomy.roles", "masks.mask", "retrain.trainer", "artifacts.checkpoint", "cli"):
        assert expected in known
    assert sum(len(edges) for edges in graph().values()) > 150  # the graph is drawn, not empty


def test_rooms_import_lower_floors_only() -> None:
    wrong = []
    for module, targets in graph().items():
        for target in targets:
            mine, theirs = FLOOR_OF[room(module)], FLOOR_OF[room(target)]
            inside = room(module) == room(target) or mine == theirs in (0, len(FLOORS) - 1)
            names = target in (NAMES, "recipe") and room(module) in NAMES_READERS and "recipe.names" in targets
            if theirs >= mine and not inside and not names:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_masks_and_rooms_above_read_no_recipe_but_its_words() -> None:
    """Only the top floor turns a recipe's fields into arguments."""
    readers = {
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if room(target) == "recipe" and target not in (NAMES, "recipe") and room(module) != "recipe"
        if FLOOR_OF[room(module)] < len(FLOORS) - 1
    }
    assert not readers


def test_there_is_no_circle() -> None:
    edges, state = graph(), dict[str, int]()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join((*path, module))
        if module not in state:
            state[module] = 1
            for target in edges[module]:
                visit(target, (*path, module))
            state[module] = 2

    # The package's own __init__ imports everything, lazily, and nothing imports it.
    for module in edges:
        visit(module, ())


@pytest.mark.parametrize(
    "code",
    [
        "import secateur",
        "import secateur; secateur.load_recipe",
        "from secateur.recipe.load import load_recipe; load_recipe({recipe!r})",
        "import secateur.cli",
    ],
)
def test_no_torch_is_imported(code: str) -> None:
    recipe = str(SOURCE.parents[1] / "recipes" / "tiny" / "report.yaml")
    script = code.format(recipe=recipe) + "; import sys; print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""
