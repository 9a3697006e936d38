"""The command line: it parses, calls one function of the Python API, and prints; errors are sentences.

Each verb is one function, in a file that bears its name; none of them imports torch before it is called.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import typer

from secateur.cli.bench import bench
from secateur.cli.compare import compare
from secateur.cli.evaluate import evaluate
from secateur.cli.importing import import_
from secateur.cli.inspect import inspect
from secateur.cli.ls import ls
from secateur.cli.making import cut, export, pack, unpack
from secateur.cli.options import is_first_process
from secateur.cli.plan import plan
from secateur.cli.predict import predict
from secateur.cli.prune import prune
from secateur.cli.run import demo, run
from secateur.cli.search import search
from secateur.cli.sensitivity import sensitivity
from secateur.cli.sweep import sweep
from secateur.cli.validate import validate
from secateur.errors import FailedElsewhere, RunInterrupted, SecateurError

# Under bf16 on a CPU torch multiplies through oneDNN, which keeps working memory for 1,024 shapes of a product. Rows of
# all lengths bring ever new ones: trainings grew to several GB over hours. Preparing one anew costs next to nothing
# (benchmarks/training_memory.py). Read at the first product, so it must be set before.
MATMUL_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
INTERNAL = 70  # exit code of a fault of ours (sysexits.h: EX_SOFTWARE)

# In the order of --help.
VERBS = (
    *(validate, plan, inspect, run, evaluate, predict, sweep, compare),
    *(prune, cut, export, pack, unpack, bench, import_),
    *(sensitivity, search, ls, demo),
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune, retrain, cut and ship encoder-decoder transformers (T5 first), and prove what was done.",
    epilog="Begin with `secateur demo`, or copy a recipe that `secateur ls` lists. Exit codes: 0 done, 1 a problem "
    "that the message tells how to mend, 2 a wrong recipe or command line, 70 a fault of ours, 130 stopped, resumable.",
)


for _verb in VERBS:
    app.command()(_verb)


def main() -> None:
    """Run the command line and leave with its exit code; a traceback goes to a file, never to the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes on untied heads would read like ours
    os.environ.setdefault(*MATMUL_CACHE)
    try:
        app(standalone_mode=True)
    except SecateurError as error:
        if is_first_process() or not isinstance(error, FailedElsewhere | RunInterrupted):
            typer.echo(f"secateur: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("secateur: stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # the last net: whatever it is, the user gets a sentence
        with tempfile.NamedTemporaryFile("w", prefix="secateur-", suffix=".txt", delete=False) as stream:
            traceback.print_exc(file=stream)
        typer.echo(
            f"secateur: {type(error).__name__}: {error}\nThis is a fault of ours. Details: {stream.name}", err=True
        )
        sys.exit(INTERNAL)
