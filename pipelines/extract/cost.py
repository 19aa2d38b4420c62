"""Costs of decoding by container: rates from earlier runs, and estimates by these rates."""

from collections.abc import Mapping
from typing import Any

from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import manifests

# Below this many CPU seconds the error of an estimate is chance, and is not reported.
TOLD_S = 1.0


def rates(lake: Lake, spec_id: str) -> dict[str, float]:
    """CPU seconds per second of sound, by container, each from the newest run that recorded it."""
    by_container: dict[str, float] = {}
    for manifest in manifests(lake, "extract", "plan"):
        if manifest["settings"].get("spec_id") == spec_id:
            by_container = {**manifest.get("counts", {}).get("rates", {}), **by_container}
    return by_container


def rates_of(cpu_s: Mapping[str, float], audio_s: Mapping[str, float], *, least_s: float = 1.0) -> dict[str, float]:
    """CPU seconds per second of sound, by container; none for containers of `least_s` seconds or less."""
    return {name: cpu_s.get(name, 0.0) / seconds for name, seconds in audio_s.items() if seconds > least_s}


def cpu_seconds(planned_s: Mapping[str, float], known: Mapping[str, float]) -> float | None:
    """Estimate of the CPU seconds that decoding takes; None without any rate.

    A container without a rate gets the mean of the others.

    Parameters
    ----------
    planned_s : mapping of str to float
        Seconds of sound by container.
    known : mapping of str to float
        `rates`.
    """
    if not known:
        return None if planned_s else 0.0
    mean = sum(known.values()) / len(known)
    return sum(seconds * known.get(name, mean) for name, seconds in planned_s.items())


def error(estimate_s: float | None, took_s: float) -> dict[str, Any] | None:
    """The error of an estimate, for `status`; None without an estimate, or if decoding took too little to judge it."""
    if estimate_s is None or took_s < TOLD_S:
        return None
    return {"estimated_cpu_s": estimate_s, "took_cpu_s": took_s, "error": estimate_s / took_s - 1}
