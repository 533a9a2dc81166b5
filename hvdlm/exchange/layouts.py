"""LAYOUTS: a layout is a file and a line here."""

from __future__ import annotations

from hvdlm.exchange.bert import BERT
from hvdlm.exchange.gpt2 import GPT2
from hvdlm.exchange.gpt_neox import GPT_NEOX
from hvdlm.exchange.layout import Layout
from hvdlm.exchange.llama import LLAMA, MISTRAL

# model_type of a config.json -> layout; a model is written in the first that can say it.
LAYOUTS: dict[str, Layout] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "bert": BERT,
    "gpt_neox": GPT_NEOX,
    "mistral": MISTRAL,
}
