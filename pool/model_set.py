"""Which versions are to be served: a pure function of the configuration and of what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from batchyard.pool.config import Config
from batchyard.pool.config_models import Batching, Model
from batchyard.pool.versions import Found, Version, choose
from batchyard.wire.control import ModelSettings, ModelSource, WarmupRequests

# A model's name and version.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Served:
    """A version that is served: how a worker loads it, and what the broker must know of it."""

    source: ModelSource
    settings: ModelSettings


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a version does not load, and what its files were like then."""

    version: Version
    message: str


@dataclass(frozen=True, slots=True)
class ModelSet:
    """What is to be served.

    ``refused`` are versions that the policies want and that do not load. ``complaints`` say what
    of the configuration cannot be had, for a person. ``refusals`` say so of versions whose own
    files are wrong; those that are served already stay as they are.
    """

    served: dict[Key, Served] = field(default_factory=dict)
    refused: dict[Key, ModelSettings] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def sources(self) -> dict[Key, ModelSource]:
        """What a worker loads."""
        return {key: served.source for key, served in self.served.items()}


def wanted_models(
    config: Config, found: Found, failures: Mapping[Key, LoadFailure], now: ModelSet
) -> ModelSet:
    """What is to be served of the versions ``found``, of which some are known not to load.

    ``now`` is what is served: a model of which nothing else can be had keeps it.
    """
    result = ModelSet()
    complaints: list[str] = []
    refusals: list[str] = []
    for model in config.models:
        versions = found.get(model.name, {})
        failed = {
            number: why
            for number, version in versions.items()
            if (why := _obstacle(version, failures.get((model.name, number))))
            and not (version.refusal and (model.name, number) in now.served)
        }
        numbers = choose(model.version_policy, versions.keys() - failed.keys())
        served = {number: _source(model, number, versions[number]) for number in numbers}
        if not served:
            served = {
                version: kept.source
                for (name, version), kept in now.served.items()
                if name == model.name
            }
        current = max(served, default=None)
        for number, source in served.items():
            version = versions.get(number)
            settings = _settings(model, config, number, version, is_current=number == current)
            kept_as = now.served.get((model.name, number))
            if version is not None and version.refusal and kept_as is not None:
                settings = replace(settings, batching=kept_as.settings.batching)
            result.served[model.name, number] = Served(source, settings)
        for number in choose(model.version_policy, versions):
            if number in failed and number not in served:
                settings = _settings(model, config, number, None, is_current=False)
                refused = replace(settings, labels=[], error=failed[number])
                result.refused[model.name, number] = refused
        refusals += [
            f"model {model.name!r} version {number}: {version.refusal}"
            for number, version in versions.items()
            if version.refusal
        ]
        complaints += _complaints(model, list(served), sorted(versions.keys() - failed.keys()))
    return replace(result, complaints=tuple(complaints), refusals=tuple(refusals))


def loads_as(a: ModelSource, b: ModelSource) -> bool:
    """Whether a worker that loaded one need not load the other.

    What it was warmed up with does not matter: it serves other sizes as well.
    """
    return _unwarmed(a) == _unwarmed(b)


def _unwarmed(source: ModelSource) -> ModelSource:
    return replace(source, batch_sizes=[], warmup_requests=None)


def has_all(loaded: Mapping[Key, ModelSource], needed: Mapping[Key, ModelSource]) -> bool:
    """Whether a worker that loaded these need not load any of the others."""
    return not lacking(loaded, needed)


def lacking(loaded: Mapping[Key, ModelSource], needed: Mapping[Key, ModelSource]) -> set[Key]:
    """What such a worker would have to load."""
    return {
        key
        for key, source in needed.items()
        if key not in loaded or not loads_as(loaded[key], source)
    }


def _complaints(model: Model, served: list[int], found: list[int]) -> list[str]:
    if not served and found:
        return [
            f"model {model.name!r}: version_policy names none of the versions that are there: "
            f"{', '.join(map(str, found))}"
        ]
    if model.allow_version_labels_for_unavailable_models:
        return []
    return [
        f"model {model.name!r}: label {label!r} names version {labelled}, but "
        + (
            f"version {served[0]} is served"
            if len(served) == 1
            else f"versions {', '.join(map(str, served)) or 'none'} are served"
        )
        for label, labelled in model.version_labels.items()
        if labelled not in served
    ]


def _obstacle(version: Version, failure: LoadFailure | None) -> str:
    """Why a version cannot be served: its files are wrong, or did not load as they are now."""
    if version.refusal or failure is None or failure.version != version:
        return version.refusal
    return failure.message


def _source(model: Model, number: int, version: Version) -> ModelSource:
    batching = version.batching or model.batching
    return ModelSource(
        name=model.name,
        version=number,
        runtime=model.runtime,
        path=version.path,
        batch_sizes=batching.warmup_batch_sizes,
        signature=None if model.signature is None else model.signature.model_dump(),
        read_in_place=model.read_in_place,
        device_arrays=model.device_arrays,
        jit_compile=model.jit_compile,
        warmup_requests=_warmup_requests(model, batching),
    )


def _warmup_requests(model: Model, batching: Batching) -> WarmupRequests | None:
    if model.runtime == "python" or not model.run_warmup_requests:
        return None
    if not batching.enable_batching:
        return WarmupRequests(model.warmup_iterations)
    return WarmupRequests(
        iterations=model.warmup_iterations,
        max_batch_size=batching.max_batch_size,
        allowed_batch_sizes=batching.allowed_batch_sizes,
        length_buckets=batching.length_buckets,
    )


def _settings(
    model: Model, config: Config, number: int, version: Version | None, *, is_current: bool
) -> ModelSettings:
    batching = (version and version.batching) or model.batching
    timeout_s = model.batch_execution_timeout
    return ModelSettings(
        name=model.name,
        version=number,
        labels=sorted(label for label, named in model.version_labels.items() if named == number),
        batching=batching.for_broker,
        is_current=is_current,
        retry=model.retry,
        batch_execution_timeout_s=(
            config.pool.batch_execution_timeout if timeout_s is None else timeout_s
        ),
        share=model.share,
    )
