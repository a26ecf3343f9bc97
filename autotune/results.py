"""What a run leaves behind: every timing as JSON, and the tuned table that the kernels look up."""

from __future__ import annotations

import json
import platform
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from cute_attn.directories import cache_directory
from cute_attn.errors import in_words
from cute_attn.launch.tuned import table_path, tile_to_json
from cute_attn.packages import versions_of
from cute_attn.predict.machine import HELD_OUT

from .files import write_json
from .predicted import GPU
from .tune import Tuning

__all__ = ["metadata", "new_directory", "results_to_json", "table_of", "update_table", "write_results"]

_PACKAGES = ("cute-attn", "torch", "nvidia-cutlass-dsl")


def metadata(device: dict[str, Any] | None = None) -> dict[str, Any]:
    """When and with what: not part of a key, but told."""
    versions = versions_of(_PACKAGES)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "python": platform.python_version(), "versions": versions, **(device or {})}


def results_to_json(tunings: Sequence[Tuning], about: dict[str, Any]) -> dict[str, Any]:
    """Everything that was refused, compiled, predicted and measured, in seconds."""
    return {
        "format": 1,
        "measured": any(tuning.measured for tuning in tunings),
        "predicted": {
            "gpu": GPU,
            "error": {op: asdict(HELD_OUT[op]) for op in sorted({t.problem.op for t in tunings})},
        },
        "metadata": about,
        "problems": [_problem(tuning) for tuning in tunings],
    }


def table_of(tunings: Sequence[Tuning], about: dict[str, Any]) -> dict[str, Any]:
    """A tuned table of what was measured; nothing else enters one."""
    entries = [
        {
            "key": asdict(tuning.problem.key(tuning.gpu, tuning.sms)),
            "tile": tile_to_json(tuning.tile),
            "problem": tuning.problem.to_json(),
            "seconds": median(tuning.timings.final[tuning.tile]),
            "default_seconds": median(tuning.timings.final[tuning.problem.default]),
            "metadata": about,
        }
        for tuning in tunings
        if tuning.gpu is not None
    ]
    return {"format": 1, "entries": entries}


def update_table(gpu: str, table: dict[str, Any]) -> Path:
    """Puts entries into the user's table of a GPU, in the place of those with the same key; returns its path.

    A table there that cannot be read is set aside with a warning.
    """
    import filelock

    path = table_path(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        old = _entries(path)
        new = {json.dumps(entry["key"], sort_keys=True): entry for entry in (*old, *table["entries"])}
        write_json(path, {"format": 1, "entries": [new[key] for key in sorted(new)]})
    return path


def new_directory() -> Path:
    """A fresh directory for the results of a run. Raises OSError, in a sentence, where none can be made."""
    parent = cache_directory() / "autotune"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-"), dir=parent))
    except OSError as error:
        raise OSError(
            f"results and tables cannot be kept: {in_words(error)}; CUTE_ATTN_CACHE_DIR names another place"
        ) from error


def write_results(directory: Path, results: dict[str, Any]) -> Path:
    path = directory / "results.json"
    write_json(path, results)
    return path


def _entries(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        table = json.loads(path.read_text())
        if table["format"] != 1:
            raise ValueError(f"its format is {table['format']}, this version of cute_attn writes 1")
        return [{**entry, "key": dict(entry["key"])} for entry in table["entries"]]
    except (ValueError, TypeError, KeyError) as error:
        aside = path.with_suffix(".broken")  # tables are *.json
        path.replace(aside)
        warnings.warn(f"the tuned table {path} could not be read and is now {aside}: {error}", stacklevel=3)
        return []


def _problem(tuning: Tuning) -> dict[str, Any]:
    timings, default = tuning.timings, tuning.problem.default
    tiles = {**tuning.compiled, **dict.fromkeys(timings.failed)}
    return {
        "problem": tuning.problem.to_json(),
        "key": asdict(tuning.problem.key(tuning.gpu, tuning.sms)) if tuning.gpu is not None else None,
        "measured": tuning.measured,
        "nothing_compiles": tuning.why_not,
        "tile": tile_to_json(tuning.tile),
        "default": tile_to_json(default),
        "speedup": tuning.speedup,
        "candidates": [
            {
                "tile": tile_to_json(tile),
                "profile": profile.to_json() if profile else None,
                "built_before": tile in tuning.held,
                "compile_seconds": tuning.compile_seconds.get(tile),
                "predicted_seconds": tuning.predictions.seconds.get(tile),
                "not_predicted": tuning.predictions.unknown.get(tile),
                "screening_seconds": timings.screening.get(tile, []),
                "final_seconds": timings.final.get(tile, []),
                "failed": timings.failed.get(tile),
            }
            for tile, profile in tiles.items()
        ],
        "refused": [{"tile": tile_to_json(tile), "reason": why} for tile, why in (*tuning.refused, *tuning.rejected)],
        "not_compiled": [tile_to_json(tile) for tile in tuning.left],
        "not_measured": [tile_to_json(tile) for tile in timings.skipped],
    }
