"""``[[models]]`` of the configuration: what is served, and how its requests become batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from batchyard.pool.config_section import NotNegative, Positive, Section, Timeout
from batchyard.wire import dtypes


class Batching(Section):
    """``[models.batching]``: how requests for a model become batches."""

    enable_batching: bool = Field(
        True,
        description="Off: every request runs alone, as it came. For models whose outputs are not "
        "row by row. TensorFlow Serving's default is off.",
    )
    max_batch_size: Positive = Field(
        64,
        description="The most rows that run together. TensorFlow Serving's default of 1000 suits "
        "rows of a few numbers; 64 suits images as well.",
    )
    batch_timeout_micros: NotNegative = Field(
        0,
        description="How long the oldest row may wait for others, counted from its arrival. Also "
        "at 0 batches grow while all workers are busy.",
    )
    max_enqueued_batches: Positive = Field(
        100,
        description="Batches' worth of rows that may wait in a lane; beyond, requests get "
        "UNAVAILABLE at once. TensorFlow Serving's default of 10 goes with its larger batches.",
    )
    num_batch_threads: Positive | None = Field(
        None,
        description="The most batches of this model that run at once in the whole pool. Default: "
        "as many as its workers have room for.",
    )
    allowed_batch_sizes: list[Positive] = Field(
        default=[],
        description="If given, a batch is padded up to the next of these sizes. Increasing; the "
        "last equals max_batch_size. Workers are warmed up at each.",
    )
    pad_variable_length_inputs: bool = Field(
        False,
        description="Requests whose rows differ in open dimensions share a batch: each is padded, "
        "with the first element of its own tensor, to the largest.",
    )
    length_buckets: list[Positive] = Field(
        default=[],
        description="With pad_variable_length_inputs: open dimensions are padded up to the next "
        "of these, so that fewer shapes occur. Increasing.",
    )
    queue_delay_target_micros: NotNegative = Field(
        0,
        description="For requests without a deadline: those that waited longer get UNAVAILABLE "
        "while the queue has not been below that for 100 ms. 0: they wait for as long as it takes.",
    )
    enable_large_batch_splitting: bool = Field(
        True,
        description="A request of more than max_batch_size rows is split over batches and its "
        "answer put together. Off: INVALID_ARGUMENT, as TensorFlow Serving's default.",
    )
    warmup_max_batch_size: Positive | None = Field(
        None,
        description="Without allowed_batch_sizes: the most rows that workers are warmed up at, "
        "where max_batch_size is more than will come. Default: max_batch_size.",
    )

    @field_validator("allowed_batch_sizes", "length_buckets")
    @classmethod
    def _increases(cls, sizes: list[int]) -> list[int]:
        if any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"must be increasing, not {sizes}")
        return sizes

    @model_validator(mode="after")
    def _fits_together(self) -> Batching:
        sizes = self.allowed_batch_sizes
        if sizes and sizes[-1] != self.max_batch_size:
            raise ValueError(
                f"the last of allowed_batch_sizes must equal max_batch_size = "
                f"{self.max_batch_size}, not {sizes[-1]}"
            )
        if self.length_buckets and not self.pad_variable_length_inputs:
            raise ValueError("length_buckets needs pad_variable_length_inputs = true")
        return self

    @property
    def warmup_batch_sizes(self) -> list[int]:
        """The sizes that workers are warmed up at: those allowed, or the ends of all."""
        if not self.enable_batching:
            return [1]
        most = min(self.max_batch_size, self.warmup_max_batch_size or self.max_batch_size)
        return self.allowed_batch_sizes or sorted({1, most})

    @property
    def for_broker(self) -> dict[str, Any]:
        """What the broker needs of it."""
        return self.model_dump(exclude={"warmup_max_batch_size"})


class Tensor(Section):
    """``NAME = {…}``: an input or output of a ``python`` model."""

    dtype: str = Field(description="A numpy name, bfloat16 or string.")
    shape: list[Annotated[int, Field(ge=-1)]] = Field(
        description="Whole shape with -1 for what is open; the first dimension counts rows."
    )

    @field_validator("dtype")
    @classmethod
    def _known(cls, name: str) -> str:
        if not dtypes.is_known(name):
            raise ValueError(f"must be one of {', '.join(dtypes.NAMES)}, not {name!r}")
        return name


class Signature(Section):
    """``[models.signature]``: what a ``python`` model takes and gives."""

    inputs: dict[str, Tensor] = Field(min_length=1, description="Tensors by name.")
    outputs: dict[str, Tensor] = Field(min_length=1, description="Tensors by name.")


class Model(Section):
    """``[[models]]``: one model to serve."""

    name: str = Field(min_length=1, max_length=512, description="What requests call it.")
    path: str = Field(
        min_length=1,
        description="A SavedModel's folder, or a folder of numeric version folders. For the python "
        "runtime: module:callable or file.py:callable.",
    )
    runtime: Literal["savedmodel", "python"] = Field(
        "savedmodel",
        description="savedmodel runs TensorFlow SavedModels; python calls a function with a dict "
        "of arrays, which returns a dict of arrays.",
    )
    version_policy: Literal["latest", "all"] | dict[str, int | list[int]] = Field(
        "latest",
        description="Which versions of the folder are served: latest, all, { latest = N }: the N "
        "highest, or { specific = [1, 3] }. Requests that name no version get the highest that is "
        "served. New folders are found while the server runs, see file_system_poll_wait_seconds.",
    )
    version_labels: dict[str, NotNegative] = Field(
        default={},
        description="Names for versions that are served, which requests may give instead.",
    )
    allow_version_labels_for_unavailable_models: bool = Field(
        False,
        description="Labels may name versions that are not there yet. Requests that give one are "
        "refused until its version is served.",
    )
    signature: Signature | None = Field(
        None,
        description="Python runtime only: what the function takes and gives. Without it any "
        "inputs are taken, and nothing is warmed up.",
    )
    read_in_place: bool = Field(
        True,
        description="Python runtime only: whether the function may be given large inputs where a "
        "client on this machine has them, read-only, instead of a copy. The client could change "
        "them meanwhile: set false for a function that sorts its inputs, or uses values of them "
        "as indices without copying them first. A function that writes to such an input is called "
        "again with a copy, and gets copies from then on.",
    )
    device_arrays: bool = Field(
        False,
        description="On a GPU the worker brings inputs to the card itself, while the batch before "
        "computes, and brings outputs back. A python function gets arrays there that any DLPack "
        "framework takes as they are, and may return its own; a SavedModel's signatures are "
        "called as tf.function with them. See docs/gpu.md. On a CPU a function gets numpy arrays.",
    )
    jit_compile: bool = Field(
        False,
        description="Whether XLA compiles a SavedModel's signatures: once for each of "
        "allowed_batch_sizes, before it is served.",
    )
    run_warmup_requests: bool = Field(
        True,
        description="Whether a SavedModel's own warm-up requests, a TFRecord file "
        "assets.extra/tf_serving_warmup_requests of at most 1000 PredictionLogs in a version's "
        "folder, are run before that version is served. One that fails keeps it from being served. "
        "TensorFlow Serving's --enable_model_warmup.",
    )
    warmup_iterations: Positive = Field(
        1,
        le=1_000_000,
        description="How many times each of these requests is run. TensorFlow Serving's "
        "--num_request_iterations_for_warmup.",
    )
    retry: bool | None = Field(
        None,
        description="Whether a request may run again after a process died that ran it. Default: "
        "unless the model writes variables.",
    )
    batch_execution_timeout: Timeout | None = Field(
        None, description="As under [pool], for this model. Default: that one."
    )
    share: Annotated[float, Field(gt=0, le=1e6)] = Field(
        1.0,
        description="What share of the devices' time the model has while there is not enough for "
        "all, in proportion to those of other models. What it does not use is for the others.",
    )
    batching_params_file: bool = Field(
        False,
        description="Each version may say itself how its requests become batches: in "
        "batching_params.pbtxt in its folder, with TensorFlow Serving's keys and defaults. "
        "[models.batching] is for versions without one. A version whose file is wrong is not "
        "served; others are.",
    )
    batching: Batching = Field(default=Batching(), description="See [models.batching].")

    @field_validator("version_policy", mode="before")
    @classmethod
    def _is_a_policy(cls, policy: Any) -> Any:
        if policy in ("latest", "all"):
            return policy
        match policy:
            case {"latest": int(number), **rest} if not rest:
                if type(number) is int and number >= 1:
                    return policy
            case {"specific": [_, *_] as numbers, **rest} if not rest:
                if all(type(number) is int and number >= 0 for number in numbers):
                    return policy
        raise ValueError(
            f'must be "latest", "all", {{ latest = N }} or {{ specific = [1, 3] }}, not {policy!r}'
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Model:
        if self.runtime == "python" and ":" not in self.path:
            raise ValueError(
                f"path must be module:callable or file.py:callable for the python runtime, "
                f"not {self.path!r}"
            )
        if self.runtime == "python" and self.batching_params_file:
            raise ValueError("batching_params_file is for SavedModels: a function has no folder")
        if self.runtime == "python" and self.jit_compile:
            raise ValueError("jit_compile is for SavedModels: a function compiles what it likes")
        sizes_are_known = self.batching.allowed_batch_sizes or self.batching_params_file
        if self.jit_compile and self.batching.enable_batching and not sizes_are_known:
            raise ValueError(
                "jit_compile needs batching.allowed_batch_sizes, such as [1, 8, 64]: XLA compiles "
                "for each size that occurs, and that takes seconds"
            )
        if self.runtime != "python" and self.signature is not None:
            raise ValueError(
                "signature is for the python runtime; a SavedModel has its own. For a Python "
                'function add runtime = "python"'
            )
        return self
