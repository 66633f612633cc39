"""What a run of the command line does not print: lines of libraries that every run causes.

In a Lightning project the Trainer and its messages are the project's own, and nothing here is called.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from pathlib import Path

import lightning

from lit_attr.callbacks.signals import process_rank

LIGHTNING = str(Path(lightning.__file__).parent)
# Where Lightning logs what it finds about devices, processes and its sister products; others log there as well.
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed")


def quieten() -> None:
    """Drops messages of libraries that every run causes, in other processes than the first all but errors."""
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", message="The 'predict_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")
    if "HF_HUB_VERBOSITY" not in os.environ:
        # Each retry of a hub that cannot be reached; the final error says it.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    threading.excepthook = _report_thread
    logging.getLogger("transformers.distributed.mixin").addFilter(_is_of_model)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_of_run)
    if process_rank():
        quieten_further_process()


def quieten_further_process() -> None:
    """Leaves the warnings of libraries to the first process of a run, which has the same."""
    warnings.simplefilter("ignore")
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.getLogger("transformers").setLevel(logging.ERROR)


def _is_of_run(record: logging.LogRecord) -> bool:
    """A filter for loggers: drops what Lightning itself finds worth saying, but no warning."""
    is_shown = logging.getLogger("lightning").isEnabledFor(logging.DEBUG)
    return is_shown or record.levelno > logging.INFO or not record.pathname.startswith(LIGHTNING)


def _is_of_model(record: logging.LogRecord) -> bool:
    """A filter for a logger: drops that transformers' rules for sharing any model have no match in this one."""
    return "`fsdp_plan` rules" not in record.getMessage()


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Ignores what TensorBoard's writing thread could not write: the main thread raises it again."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)
