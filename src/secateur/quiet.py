"""Keep transformers from talking over our own progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "transformers.modeling_utils",
    "transformers.configuration_utils",
    "transformers.trainer",
    "transformers.distributed.tensor_parallel",  # speaks of sharding as soon as the first of these is held back
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back the library's bars, and its notes at every load that an untied head is untied; errors still show.

    Yields:
        Nothing; levels and bars are as they were when the block ends.
    """
    from transformers.utils import logging as hub_logging

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hub_logging.enable_progress_bar()
