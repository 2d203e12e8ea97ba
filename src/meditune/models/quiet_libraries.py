"""Turn off the telemetry and console output of third-party libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def no_telemetry() -> None:
    """Turn off telemetry in the libraries that Meditune uses. Call this before any of these libraries is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # peft imports bitsandbytes if it is installed. bitsandbytes would download compiled code from the Hugging Face hub
    # through the package `kernels`, so that package is blocked. bitsandbytes then logs a warning, and it also logs
    # every conversion of an input; the log level below hides both.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    # From 5.25, transformers loads no model without `kernels` unless this is set.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    # OpenVINO's converter and NNCF report each use to Google Analytics through this package, but work without it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings inside the block."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
