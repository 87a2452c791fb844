"""Frees what a model's functions take, when the model is gone."""

from __future__ import annotations

import gc


def collect_functions() -> None:
    """Collects what ``tf.saved_model.load`` or a model's file made, and nobody has any more.

    It refers to itself all over, and the garbage collector was told to leave alone what was there
    when models were loaded: variables and functions, with their constants, would stay. It takes
    some tenths of a second, and is done only where such a model goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
