"""Operations that TensorFlow Serving has linked in, and TensorFlow itself has not.

They are in packages, which register them when they are imported. None is, until a model asks for
an operation that is not there: that takes seconds, and memory.
"""

from __future__ import annotations

import importlib
import re

from batchyard.wire import log

# Their modules, and what pip calls them.
PACKAGES = {
    "tensorflow_text": "tensorflow-text",
    "tensorflow_decision_forests": "tensorflow-decision-forests",
    "struct2tensor": "struct2tensor",
}
_MISSING = re.compile(r"Op type not registered '([^']+)'")


def missing_operation(error: Exception) -> str | None:
    """The operation that TensorFlow says it does not have, if that is what it says."""
    found = _MISSING.search(str(error))
    return found[1] if found else None


def import_packages() -> None:
    """Imports those of them that are installed."""
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                log.warning("operations_not_imported", package=package, reason=error)
        except Exception as error:
            # Built for another version of TensorFlow, mostly.
            log.warning("operations_not_imported", package=package, reason=error)
