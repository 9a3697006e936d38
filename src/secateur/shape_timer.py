"""How long shapes take: models with random weights, timed in an engine in turns with the dense one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from secateur.anatomy.stored import read_config
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_tokenizer
from secateur.benching import bench
from secateur.errors import RunInterrupted, SecateurError
from secateur.fields import needed
from secateur.files import read_json, write_json
from secateur.masks.mask import MaskSet
from secateur.recipe.schema import Recipe
from secateur.search.shapes import Shape
from secateur.tasks.encode import tokenize
from secateur.tasks.pairs import Pairs

NUM_TEXTS = 8


class ShapeTimer:
    """Times shapes with random weights in an engine, each once, and remembers them on disk.

    Args:
        folder: the search's.
        path: the dense model's.
        recipe: says the texts.
        pairs: their targets say how long what is written is.
        engine: of `bench_entries.ENGINES`.
        threads: CPU threads.
        repeats: timed rounds.
        should_stop: asked before shapes are timed, some at once.
    """

    def __init__(
        self,
        folder: Path,
        path: str,
        recipe: Recipe,
        pairs: Pairs,
        *,
        engine: str,
        threads: int,
        repeats: int,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.folder, self.path, self.recipe = folder, path, recipe
        self.engine, self.threads, self.repeats, self.should_stop = engine, threads, repeats, should_stop
        self.file = folder / "times.json"
        known = read_json(self.file) if self.file.exists() else {"new_tokens": None, "ms": {}}
        self.known: dict[str, float] = known["ms"]
        self.new_tokens: int = known["new_tokens"] or _mean_target(recipe, path, pairs)

    def times(self, shapes: Sequence[Shape]) -> dict[Shape, float]:
        """Give milliseconds of shapes, the dense one first.

        What is not known yet is timed in turns with the dense model, and set against its time then: a machine that has
        become slower since the first shapes were timed makes none of them slower.
        """
        dense, missing = shapes[0], [shape for shape in shapes[1:] if shape.name not in self.known]
        if missing or dense.name not in self.known:
            if self.should_stop and self.should_stop():
                raise RunInterrupted("Stopped before shapes were timed. The same command goes on.")
            found = self._time([dense, *missing])
            scale = self.known.get(dense.name, found[dense.name]) / found[dense.name]
            self.known |= {name: taken * scale for name, taken in found.items()}
            write_json(self.file, {"new_tokens": self.new_tokens, "ms": self.known})
        return {shape: self.known[shape.name] for shape in shapes}

    def forget(self, shapes: Iterable[Shape]) -> None:
        """Let shapes be timed again when they are next asked for."""
        for shape in shapes:
            self.known.pop(shape.name, None)
        write_json(self.file, {"new_tokens": self.new_tokens, "ms": self.known})

    def _time(self, shapes: Sequence[Shape]) -> dict[str, float]:
        place = self.folder / "shapes"
        shutil.rmtree(place, ignore_errors=True)  # of a call that was stopped
        tokenizer = load_tokenizer(self.path, trust_remote_code=self.recipe.trust_remote_code)
        for shape in shapes:
            save_plain(
                _random_model(self.path, shape, self.recipe), tokenizer, place / shape.name, masks=MaskSet.empty()
            )
        names = {str(place / shape.name): shape.name for shape in shapes}
        content = bench(
            list(names),
            self.recipe,
            out=place / "bench",
            engines=(self.engine,),
            batches=(1,),
            threads=(self.threads,),
            repeats=self.repeats,
            num_texts=NUM_TEXTS,
            new_tokens=self.new_tokens,
            memory=False,
        )
        shutil.rmtree(place)
        if content["skipped"]:
            raise SecateurError(f"engine: {self.engine} cannot be used: {content['skipped'][0]['reason']}")
        return {names[row["model"]]: row["latency_ms"] for row in content["rows"]}


def _mean_target(recipe: Recipe, path: str, pairs: Pairs) -> int:
    """How many tokens the mean target of the split has, the end token counted; the recipe's limit at most."""
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.trust_remote_code)
    rows, _ = tokenize(tokenizer, [target for _, target in pairs.rows()], needed(recipe.task.max_target_tokens))
    mean = sum(map(len, rows)) / max(1, len(rows))
    return max(1, min(round(mean), needed(recipe.evaluation.max_new_tokens)))


def shaped_config(config: Any, shape: Shape) -> Any:
    """Copy a model's configuration and give it another shape.

    Args:
        config: of a T5 or its kin.
        shape: what it becomes.

    Returns:
        The copy.
    """
    config = copy.deepcopy(config)
    config.num_layers, config.num_decoder_layers = shape.encoder_layers, shape.decoder_layers
    config.num_heads, config.d_ff = shape.heads, shape.neurons
    return config


def _random_model(path: str, shape: Shape, recipe: Recipe) -> Any:
    config, _ = read_config(path, trust_remote_code=recipe.trust_remote_code)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return AutoModelForSeq2SeqLM.from_config(shaped_config(config, shape)).float().eval()


__all__ = ["ShapeTimer", "shaped_config"]
