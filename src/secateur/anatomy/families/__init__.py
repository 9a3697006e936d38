"""The families we know, by the `model_type` of their configuration."""

from __future__ import annotations

from secateur.anatomy.families.bart import BART, MARIAN, MBART, PEGASUS
from secateur.anatomy.families.bert import BERT, DISTILBERT, ROBERTA
from secateur.anatomy.families.t5 import MT5, T5, UMT5
from secateur.anatomy.family import Family

FAMILIES: dict[str, Family] = {
    "t5": T5,
    "mt5": MT5,
    "umt5": UMT5,
    "bart": BART,
    "mbart": MBART,
    "marian": MARIAN,
    "pegasus": PEGASUS,
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": DISTILBERT,
}
