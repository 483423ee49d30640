"""What Lightning and its neighbours say that helps nobody here."""

import logging
import re
import warnings

ADVERTS = re.compile(r"Tip:|[GT]PU available|Seed set to|HPU available|litlogger|litmodels|^$")
NOISE = (
    r".*treespec, LeafSpec.*",
    r".*Attribute '\w+' is an instance of `nn\.Module`.*",
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*The dirpath has changed.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
)


def silence() -> None:
    """Drop adverts and warnings that call for no action; show every other warning as one line
    without its address."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    for name in ("lightning.pytorch", "lightning.fabric"):
        for child in ("", ".utilities.rank_zero", ".utilities.seed"):
            logger = logging.getLogger(name + child)
            if not any(isinstance(known, _WithoutAdverts) for known in logger.filters):
                logger.addFilter(_WithoutAdverts())


class _WithoutAdverts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not ADVERTS.search(record.getMessage().strip())
