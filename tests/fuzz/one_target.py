"""Fuzzes one target, in a process of its own: ``python -m fuzz.one_target NAME FOLDER [libFuzzer
arguments]``.

What crashes is kept in the folder, one input for each place that raises, and fuzzing goes on.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["batchyard"]):
    from fuzz import harness

from fuzz.mutate import mutate


def main() -> None:
    """See the module. Does not return: libFuzzer ends the process."""
    name, folder, *arguments = sys.argv[1:]
    crashes = _Crashes(name, Path(folder))

    def test_one_input(data: bytes) -> None:
        try:
            harness.run(name, data)
        except Exception as error:
            crashes.keep(data, error)

    def mutate_document(data: bytes, most: int, seed: int) -> bytes:
        return mutate(bytes(data), most, seed, lambda raw: atheris.Mutate(raw, len(raw) + 16))

    atheris.Setup([sys.argv[0], *arguments], test_one_input, custom_mutator=mutate_document)
    atheris.Fuzz()


class _Crashes:
    """The first input for each place that raises."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._known: set[tuple[object, ...]] = set()

    def keep(self, data: bytes, error: Exception) -> None:
        """Writes an input, and beside it what it raised, unless such a one is there."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error), *((frame.name, frame.lineno) for frame in frames[-2:]))
        if place in self._known:
            return
        self._known.add(place)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._target}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        text = "".join(traceback.format_exception(error, limit=-8))
        path.with_suffix(".txt").write_text(text, errors="replace")
        print(f"CRASH {path}: {type(error).__name__}: {str(error)[:200]!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
