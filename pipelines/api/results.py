"""What the methods of `soundlake.Lake` return: frozen dataclasses, one for each command."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


class Result:
    """Base of all results: built from the dictionary of a command, and turned back into it."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Build a result from a command's dictionary; a key that the class does not document is a `TypeError`."""
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary that the command prints with ``--json``, without what was not asked for."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        pairs = ((name, getattr(self, name)) for name in fields)
        return {
            name: _plain(value) for name, value in pairs if value is not None or fields[name] is dataclasses.MISSING
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


@dataclass(frozen=True)
class Ledger(Result):
    """Summary of a ledger: the files of all corpora with one spec.

    Attributes
    ----------
    listed, done, rejected : int
        Files; ``listed = done + rejected``.
    recordings : int
        Recordings that are done; files with the same bytes are one recording.
    hours : float
        Duration of these recordings.
    windows, silent_windows, shards : int
        Windows in the shards; silent windows that were skipped; shards.
    rejects, notes : dict
        By reason and by kind: ``count``, and an ``example``.
    older_decoder : dict
        By corpus: files that an older version of soundlake decoded.
    """

    listed: int
    done: int
    rejected: int
    recordings: int
    hours: float
    windows: int
    silent_windows: int
    shards: int
    rejects: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, Mapping[str, Any]]
    older_decoder: Mapping[str, int]


@dataclass(frozen=True)
class Extraction(Result):
    """What `Lake.extract` did.

    Attributes
    ----------
    listed : int
        Files of the corpus: ``unchanged + done + rejected + forgotten``.
    unchanged, done, rejected, forgotten : int
        Files by outcome: known from an earlier run, decoded or recognised now, unusable, left out because `Lake.forget`
        removed them.
    new, changed, relabelled, gone, tried_again : int
        Files by what they were to the ledger. ``gone`` files have left it.
    left_out : int
        Names that are ignored: hidden files, and endings that are never sound.
    recordings, short_recordings, older_decoder : int
        Recordings among the files that were decoded; those shorter than half a second; files that an older version of
        soundlake decoded.
    planned_s, audio_s, cpu_s, rates : dict
        By container: seconds of sound by the headers, seconds decoded, CPU seconds of decoding, and CPU seconds per
        second of sound.
    planned_windows : int
        Windows by the headers.
    labels_without_file : int
    label_notes, unmatched_labels : list
        Oddities of the label file; the first labels without a file.
    estimate : dict or None
        ``estimated_cpu_s``, ``took_cpu_s`` and their relative ``error``; None if there was no estimate.
    spec_id, run_id : str
    ledger_version : int or None
        Of the ledger after the run; None if no file was ever listed.
    recheck, repair : dict or None
        What these found, if they were asked for.
    ledger : Ledger or None
        The ledger after the run.
    """

    listed: int
    unchanged: int
    done: int
    rejected: int
    forgotten: int
    new: int
    changed: int
    relabelled: int
    gone: int
    tried_again: int
    left_out: int
    recordings: int
    short_recordings: int
    older_decoder: int
    planned_s: Mapping[str, float]
    audio_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    rates: Mapping[str, float]
    planned_windows: int
    labels_without_file: int
    label_notes: list[Any]
    unmatched_labels: list[Any]
    estimate: Mapping[str, float] | None
    spec_id: str
    run_id: str
    ledger_version: int | None
    recheck: Mapping[str, Any] | None = None
    repair: Mapping[str, Any] | None = None
    ledger: Ledger | None = None


@dataclass(frozen=True)
class Training(Result):
    """What `Lake.train` did.

    Attributes
    ----------
    model_id : str
    trained : bool
        False if this very model was there already.
    promoted : bool
        Whether it is the model that its spec's commands use.
    judged : bool
        Whether the quality gate has ever seen it.
    metrics : dict
        Losses and health of the model: ``validation``, ``test``, ``steps``, ``seconds``, ``active_dimensions`` …
    report : str
        Path or URI of its report.
    run_id : str or None
        None if nothing was to do.
    windows, seen : int or None
        With ``if_grown``: windows of the lake, and those that the model trained most had seen.
    host : int or None
        Index of this host, if it only helped to train: then all but ``model_id`` are empty.
    """

    model_id: str
    trained: bool = False
    promoted: bool = False
    judged: bool = False
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    report: str = ""
    run_id: str | None = None
    windows: int | None = None
    seen: int | None = None
    host: int | None = None


@dataclass(frozen=True)
class Encoding(Result):
    """What `Lake.encode` did.

    Attributes
    ----------
    model_id : str
    encoded, renamed : int
        Windows that went through the model; windows that got new rows without it, such as those of a renamed file.
    stale_recordings : int
        Recordings whose old rows were removed.
    rows : int
        Rows of the table afterwards.
    index : dict
        ``kind`` (``"exact"`` or ``"IVF_FLAT"``), ``rows``, and the ``recall`` of an index.
    ledger_version, table_version, row_format : int
    run_id : str or None
        None if there was nothing to do.
    """

    model_id: str
    encoded: int
    renamed: int
    stale_recordings: int
    rows: int
    index: Mapping[str, Any] | None
    ledger_version: int
    table_version: int
    row_format: int
    run_id: str | None


@dataclass(frozen=True)
class Evaluation(Result):
    """What `Lake.evaluate` measured on a sample of the lake; docs/architecture.md describes each measure.

    Attributes
    ----------
    model_id, run_id, report : str
    recordings, windows, held_out_recordings, trained_on : int
        Size of the sample; recordings of it that training had not seen, and had seen.
    labelled, labels : int
        Recordings with a label, and the labels.
    folds : str
        How the probes were cross-validated.
    probes, ahead : dict or None
        By embedding and baseline, the measures with their intervals; by how much the embedding is ahead of the best
        baseline. None without usable labels: ``no_probes`` says why.
    no_probes : str or None
    consistency, mse, mse_behind, latent, near_copies : dict
    verdict : list of str
        What follows from the figures, in sentences.
    """

    model_id: str
    run_id: str
    report: str
    recordings: int
    windows: int
    held_out_recordings: int
    trained_on: int
    labelled: int
    labels: int
    folds: str
    probes: Mapping[str, Any] | None
    ahead: Mapping[str, Any] | None
    no_probes: str | None
    consistency: Mapping[str, Any]
    mse: Mapping[str, float]
    mse_behind: Mapping[str, float]
    latent: Mapping[str, Any]
    near_copies: Mapping[str, int]
    verdict: list[str]


@dataclass(frozen=True)
class Promotion(Result):
    """What `Lake.promote` decided.

    Attributes
    ----------
    model_id, spec_id, run_id : str
    instead_of : str or None
        The model that was in use before.
    measures : dict
        By name, the candidate and the current model with the interval of their difference; empty if there was nothing
        to compare with.
    worse : list of str
        Measures in which the candidate is worse.
    forced : bool
    """

    model_id: str
    spec_id: str
    run_id: str
    instead_of: str | None
    measures: Mapping[str, Any]
    worse: list[str]
    forced: bool


@dataclass(frozen=True)
class Export(Result):
    """What `Lake.export` wrote.

    Attributes
    ----------
    model_id, file, by : str
    rows : int
    """

    model_id: str
    file: str
    by: str
    rows: int


@dataclass(frozen=True)
class Maintenance(Result):
    """What `Lake.maintain` did.

    Attributes
    ----------
    swept : dict
        By kind of leftover: ``count`` and ``bytes``.
    ledgers, tables : dict
        By spec_id and model_id: fragments and versions before and after, why it was left alone; a table's ``index``.
    dry_run : bool
    run_id : str or None
        None for a dry run.
    """

    swept: Mapping[str, Mapping[str, int]]
    ledgers: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Mapping[str, Any]]
    dry_run: bool
    run_id: str | None


@dataclass(frozen=True)
class Erasure(Result):
    """What `Lake.forget` erased.

    Attributes
    ----------
    recordings, names, already : int
        Recordings and names that were forgotten now; those that were forgotten before.
    unknown : list of str
        Names that the lake does not know.
    models, tables : dict
        Models that were trained on the recordings; tables whose rows changed.
    run_id : str
    """

    recordings: int
    names: int
    already: int
    unknown: list[str]
    models: Mapping[str, Any]
    tables: Any
    run_id: str | None


@dataclass(frozen=True)
class Status(Result):
    """The lake at a glance.

    Attributes
    ----------
    lake : str
        Its root.
    specs : dict
        By spec_id: ``preset``, ``ledger_version``, the fields of `Ledger`, the last ``estimate``, and the ``promoted``
        model.
    models : dict
        By model_id: ``spec_id``, ``promoted``, ``validation``, ``active_dimensions``, ``report``,
        ``trained_forgotten``; or ``unreadable`` and why.
    tables : dict
        By model_id: ``rows``, ``table_version``, ``index``, ``up_to_date``.
    forgotten : dict
        Numbers of ``recordings`` and ``names`` that the lake has forgotten.
    """

    lake: str
    specs: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Mapping[str, Any]]
    forgotten: Mapping[str, int]
