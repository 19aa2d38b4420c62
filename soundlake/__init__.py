"""soundlake: search a collection of audio by sound.

A lake holds features, models and embeddings of a corpus. `Lake` has a method for each command of the command line:

>>> import soundlake
>>> lake = soundlake.Lake("lake")  # doctest: +SKIP
>>> lake.search("heron.wav", start=3.5, end=5.5).to_pandas()  # doctest: +SKIP

Importing soundlake loads nothing heavy: each name below is loaded at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundlake.model.errors import HeldError, InputError, SoundlakeError, TryLaterError
    from soundlake.model.features.log_mel import PRESETS, FeatureSpec, log_mel
    from soundlake.model.saved.artifact import load as load_model
    from soundlake.pipelines.api.hits import Hits
    from soundlake.pipelines.api.lake import Lake
    from soundlake.pipelines.audio.recording import Rejected
    from soundlake.pipelines.query.query import load_audio
    from soundlake.pipelines.query.search import Hit

__all__ = [
    "PRESETS",
    "FeatureSpec",
    "HeldError",
    "Hit",
    "Hits",
    "InputError",
    "Lake",
    "Rejected",
    "SoundlakeError",
    "TryLaterError",
    "__version__",
    "load_audio",
    "load_model",
    "log_mel",
]

# Where each name is defined: module, and its name there.
_HOMES = {
    "FeatureSpec": ("model.features.log_mel", "FeatureSpec"),
    "PRESETS": ("model.features.log_mel", "PRESETS"),
    "log_mel": ("model.features.log_mel", "log_mel"),
    "SoundlakeError": ("model.errors", "SoundlakeError"),
    "InputError": ("model.errors", "InputError"),
    "TryLaterError": ("model.errors", "TryLaterError"),
    "HeldError": ("model.errors", "HeldError"),
    "Rejected": ("pipelines.audio.recording", "Rejected"),
    "Lake": ("pipelines.api.lake", "Lake"),
    "Hits": ("pipelines.api.hits", "Hits"),
    "Hit": ("pipelines.query.search", "Hit"),
    "load_audio": ("pipelines.query.query", "load_audio"),
    "load_model": ("model.saved.artifact", "load"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("soundlake")
    if name not in _HOMES:
        raise AttributeError(f"module 'soundlake' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(f"soundlake.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
