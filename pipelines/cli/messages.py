"""Messages of the commands in words."""

import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from soundlake.model.features.log_mel import PRESETS
from soundlake.model.judging.evaluate import DISTURBANCES, GATE_WORDS, MEASURES, PARTS, baselines
from soundlake.pipelines.audio.reading import NOTES, REASONS
from soundlake.pipelines.cli.terminal import visible
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import duration


def files(totals: dict[str, Any]) -> str:
    """The results of an extract in one line."""
    new = totals["done"] + totals["rejected"] + totals["gone"]
    left = f", {totals['left_out']} ignored by name" if totals["left_out"] else ""
    left += _labels_without_file(totals)
    gone = f", {totals['gone']} deleted" if totals["gone"] else ""
    forgotten = f", {totals['forgotten']} forgotten" if totals["forgotten"] else ""
    if not new:
        every = "all " if not forgotten else ""
        return f"nothing to do: {every}{totals['unchanged']} files are unchanged{forgotten}{left}"
    return (
        f"{totals['listed']} files: {totals['unchanged']} unchanged, {totals['done']} done, "
        f"{totals['rejected']} rejected{forgotten}{gone}{left}"
    )


def _labels_without_file(totals: dict[str, Any], before: str = ", ") -> str:
    """How many labels have no file, in words: with a wrong folder before each name, a lake would get no label."""
    count = totals["labels_without_file"]
    return f"{before}{count} label{'s' * (count > 1)} without a file" if count else ""


def labels(totals: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print notes on a label file, and the first labels without a file, each with the file of the nearest name."""
    for note in totals["label_notes"]:
        say(f"    labels: {shown(note)}")
    for label in totals["unmatched_labels"]:
        nearest = (
            f"; the nearest is {shown(label['nearest'])}, which differs {label['differs']}" if label["nearest"] else ""
        )
        say(f"    labels: line {label['line']} names {shown(label['uri'])}: there is no such file{nearest}")
    rest = totals["labels_without_file"] - len(totals["unmatched_labels"])
    if rest > 0:
        say(f"    labels: {rest} more have no file")


def rejects(summary: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print a line for each reason of rejection, the most frequent first, with an example."""
    for reason, entry in summary["rejects"].items():
        say(f"    {entry['count']:>6}  {reason}: {REASONS.get(reason, '')} Example: {shown(entry['example'])}")


def notes(summary: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print a line for each kind of note on files that are done, the most frequent first, with an example."""
    for kind, entry in summary["notes"].items():
        example = entry["example"]
        lengths = f"{example['duration_s']:.2f} s decoded"
        if kind == "other-length":
            lengths = f"{example['claimed_s']:.2f} s by its header, {lengths}"
        say(f"    {entry['count']:>6}  done, {kind}: {NOTES.get(kind, '')} Example: {shown(example['uri'])}: {lengths}")


def plan(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print what extract would do, and what it would cost."""
    again = f", {found['tried_again']} to be retried" if found["tried_again"] else ""
    moved = f", {found['relabelled']} under another label or corpus" if found["relabelled"] else ""
    gone = f"; {found['gone']} deleted" if found["gone"] else ""
    forgotten = f", {found['forgotten']} forgotten" if found["forgotten"] else ""
    left = f"; {found['left_out']} ignored by name" if found["left_out"] else ""
    left += _labels_without_file(found, "; ")
    say(
        f"{found['listed']} files: {found['unchanged']} unchanged, {found['new']} new, {found['changed']} changed"
        f"{again}{moved}{forgotten}{gone}{left}"
    )
    labels(found, say)
    if found["older_decoder"]:
        say(
            f"    {found['older_decoder']:>6}  of the unchanged were read by an older version of soundlake: "
            "extract --recheck decodes them again"
        )
    if found["known"]:
        say(f"    {found['known']:>6}  have content that is already in the lake: not decoded again")
    for reason, count in found["rejects"].items():
        say(f"    {count:>6}  rejected, {reason}: {REASONS.get(reason, '')}")
    if not found["recordings"]:
        say("nothing to decode")
        return
    hours = sum(found["planned_s"].values()) / 3600
    kinds = ", ".join(f"{name} {seconds / 3600:.2f} h" for name, seconds in found["planned_s"].items())
    say(
        f"to decode: {found['recordings']} recordings, {hours:.2f} hours according to their headers ({kinds}), "
        f"{found['planned_windows']} windows, {found['shards']} shards"
    )
    if found["suggested_spec"]:
        say(
            f"    {found['short_recordings']:>6}  of these recordings are shorter than half a second, and most of a "
            f"window of {found['window_s']:.2g} s would be padding: "
            f"--spec {found['suggested_spec']} has shorter windows"
        )
    cost = found["estimate"]
    if cost["cpu_s"] is None:
        say(f"no estimate of the time: no sample could be decoded; {cost['bytes'] / 1e9:.2g} GB of shards")
        return
    say(
        f"estimate: {duration(cost['cpu_s'])} of one core ({cost['cpu_s'] / 3600:.2g} CPU hours), about "
        f"{duration(cost['cpu_s'] / cost['cores'])} on {cost['cores']}; {cost['bytes'] / 1e9:.2g} GB of shards; "
        f"rates {cost['source']}"
    )
    if cost["money"]:
        costs = [f"{cost['money'][name]:.2f} {purpose}" for name, purpose in _MONEY.items() if name in cost["money"]]
        say(f"cost: {', '.join(costs)}, in the currency of the prices")


_MONEY = {"cpu": "for CPU time", "storage": "per month for storage"}


# An estimate within this share of the actual time counts as right.
CLOSE = 0.05


def estimate_error(found: dict[str, Any]) -> str:
    """How far the last estimate was off, in words."""
    ratio = 1 + found["error"]
    if ratio >= 2:
        verdict = f"the estimate was {ratio:.1f} times as much"
    elif ratio <= 0.5:
        verdict = f"{1 / ratio:.1f} times the estimate" if ratio > 0 else "nothing was estimated"
    else:
        verdict = f"{abs(found['error']):.0%} {'less' if found['error'] > 0 else 'more'} than estimated"
        verdict = "as estimated" if abs(found["error"]) < CLOSE else verdict
    return (
        f"last extract: estimated at {duration(found['estimated_cpu_s'])} of CPU time, "
        f"took {duration(found['took_cpu_s'])}: {verdict}"
    )


def shown(name: str) -> str:
    """A name on one line, whatever characters it contains."""
    return name if name.isprintable() else repr(name)


def elbo(metrics: dict[str, Any]) -> str:
    """A model's loss on held-out windows, in words."""
    losses = metrics["validation"]
    return (
        f"validation loss {losses['negative_elbo']:.0f} nats a window "
        f"(−log p(x|z) {losses['nll']:.0f} + KL {losses['kl']:.1f}), "
        f"mean square error {losses['mse']:.3f}"
    )


def older_decoder(summary: dict[str, Any], spec_id: str, lake: Lake, say: Callable[[str], None]) -> None:
    """Print how many files an older decoder read, if any, and the command that decodes them again."""
    presets = {spec.spec_id: name for name, spec in PRESETS.items()}
    spec = presets.get(spec_id, lake.uri(f"{Lake.spec(spec_id)}/spec.json"))
    for corpus, count in summary["older_decoder"].items():
        command = lake.command(f"extract {shlex.quote(str(corpus))} --spec {shlex.quote(spec)} --recheck")
        say(
            f"    {count:>6}  were read by an older version of soundlake. To decode again what this version reads "
            f"otherwise, run: {command}"
        )


def rechecked(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print the outcome of a recheck of files that an older decoder read."""
    say(
        f"recheck: {found['same']} files are read as before, {found['different']} otherwise, "
        f"{found['unreachable']} could not be read"
    )
    if found["example"] is not None:
        say(
            f"    {found['unreachable']:>6}  are missing or have changed since they were extracted, and stay as they "
            f"are. Example: {shown(found['example'])}"
        )


def repaired(found: dict[str, Any], spec_id: str, say: Callable[[str], None]) -> None:
    """Print which shards were damaged, and how each was repaired."""
    say(f"repair: {found['shards']} shards checked, {len(found['damaged'])} damaged")
    for shard in found["damaged"]:
        same = shard["moved_to"] == shard["bundle"]
        outcome = "rebuilt, byte for byte" if same else f"its remaining recordings are now in {shard['moved_to']}"
        say(f"    {Lake.shard(spec_id, shard['bundle'])}: {shard['damage']}; {outcome}")


def run(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print the results of the main job."""
    ledger, extracted, encoded = result["ledger"], result["extract"], result["encode"]
    say(f"files       {files(extracted)}")
    labels(extracted, say)
    say(
        f"recordings  {ledger['recordings']} done, {ledger['rejected']} files rejected, {ledger['hours']:.2f} hours, "
        f"{ledger['windows']} windows in {ledger['shards']} shards, {ledger['silent_windows']} silent windows left out"
    )
    rejects(ledger, say)
    notes(ledger, say)
    model = result["model"]
    training = result["train"] or {"model_id": None, "trained": False}
    how = "trained" if training["trained"] and training["model_id"] == model["model_id"] else "there already"
    say(f"model       {model['model_id']} {how}: {elbo(model['metrics'])}")
    did = f"{encoded['encoded']} windows encoded" if encoded["encoded"] else "nothing to encode"
    say(f"table       {encoded['rows']} rows, {did}, search is {encoded['index']['kind']}")
    judged = result["evaluation"]
    if judged is not None:
        of_model = "" if judged["model_id"] == model["model_id"] else f" of {judged['model_id']}, trained now"
        first, *more_lines = [*worth(judged), *_wrapped(judged["verdict"])]
        say(f"evaluation{of_model}  {first}")
        for line in more_lines:
            say(f"            {line}")
    say(f"report      {result['report']}")


def worth(found: dict[str, Any]) -> list[str]:
    """The main results of an evaluation, in a few lines."""
    error = (
        f"error on held-out recordings {found['mse']['model']:.3f}, of principal components {found['mse']['PCA']:.3f}"
    )
    if found["probes"] is None:
        return [error]
    rivals = [found["probes"][name] for name in baselines(found["probes"])]
    scores = [
        f"{title} {found['probes']['embedding'][key]['value']:.3f} ({max(row[key]['value'] for row in rivals):.3f})"
        for key, title in MEASURES.items()
    ]
    return [error, f"labels predicted from the embedding (best baseline): {', '.join(scores)}"]


def encoded(result: dict[str, Any]) -> str:
    """The results of an encode in one line."""
    did = [f"{result['encoded']} windows encoded"] if result["encoded"] else []
    did += [f"{result['renamed']} windows copied under a new name or label"] if result["renamed"] else []
    if result["stale_recordings"]:
        did.append(f"old rows of {result['stale_recordings']} recordings removed")
    search = f", search is {result['index']['kind']}" if result["index"] else ""
    return f"{', '.join(did) or 'nothing to do'}; the table has {result['rows']} rows{search}"


def trained(result: dict[str, Any], lake: str, say: Callable[[str], None]) -> None:
    """Print what train made, and how to use it."""
    if "host" in result:
        say(f"model   {result['model_id']}: host {result['host']} is done; the chief saves the model")
        return
    metrics = result["metrics"]
    how = "nothing to do: already trained"
    if result["trained"]:
        how = f"trained in {metrics['steps']} steps, {metrics['seconds']} s"
    elif "seen" in result:
        how = f"nothing to do: it was trained on {result['seen']} windows, the lake has {result['windows']}"
    say(f"model   {result['model_id']}{' (promoted)' if result['promoted'] else ''}: {how}")
    active = f"{metrics['active_dimensions']} of {len(metrics['kl_per_dim'])} dimensions active"
    say(f"        {elbo(metrics)}; {active}")
    say(f"report  {result['report']}")
    if not result["promoted"]:
        say(f"to use it: soundlake promote {result['model_id']} --lake {shlex.quote(lake)}")


def promoted(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print what promote did, and the figures that it compared."""
    if result["instead_of"] == result["model_id"]:
        say(f"nothing to do: {result['model_id']} is already in use for the spec {result['spec_id']}")
        return
    instead = f" in place of {result['instead_of']}" if result["instead_of"] else ""
    forced = ", forced" if result["forced"] else ""
    say(f"{result['model_id']} is promoted for the spec {result['spec_id']}{instead}{forced}")
    for name, measure in result["measures"].items():
        digits = 1 if name == "negative_elbo" else 4
        note = "  worse" if measure["worse"] else ""
        say(f"  {GATE_WORDS[name]}: {measure['candidate']:.{digits}f}, before {measure['current']:.{digits}f}{note}")


def status(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print the contents of a lake."""
    say(f"lake {result['lake']}")
    forgotten = result["forgotten"]
    if any(forgotten.values()):
        say(f"  forgotten: {forgotten['recordings']} recordings, {forgotten['names']} names; extract leaves them out")
    if not result["specs"]:
        say(f"  no features yet; run: soundlake run AUDIO --lake {shlex.quote(result['lake'])}")
    for spec_id, entry in result["specs"].items():
        say(f"  features {spec_id}{' (' + entry['preset'] + ')' if entry['preset'] else ''}")
        say(
            f"    {entry['listed']} files = {entry['done']} done + {entry['rejected']} rejected; "
            f"{_recordings(entry)}, {entry['hours']:.2f} hours, {entry['windows']} windows, "
            f"{entry['shards']} shards"
        )
        notes(entry, say)
        older_decoder(entry, spec_id, Lake.at(result["lake"]), say)
        rejects(entry, say)
        if entry["estimate"] is not None:
            say(f"    {estimate_error(entry['estimate'])}")
    for model_id, entry in result["models"].items():
        if "unreadable" in entry:
            say(f"  model {model_id}: {entry['unreadable']}")
            continue
        mark = ", promoted" if entry["promoted"] else ""
        if entry["trained_forgotten"]:
            mark += f", trained on {entry['trained_forgotten']} recordings that are forgotten now"
        loss = entry["validation"]["negative_elbo"]
        lake_option = f"--lake {shlex.quote(result['lake'])}"
        report = entry["report"] or f"no report; run: soundlake evaluate --model {model_id} {lake_option}"
        say(f"  model {model_id}: spec {entry['spec_id']}{mark}, validation loss {loss:.0f} nats, {report}")
    for model_id, entry in result["tables"].items():
        fresh = "up to date" if entry["up_to_date"] else "its model cannot be read"
        if entry["up_to_date"] is False:
            fresh = f"out of date; run: soundlake encode --lake {shlex.quote(result['lake'])}"
        kind = (entry["index"] or {}).get("kind", "exact")
        recall = (entry["index"] or {}).get("recall")
        say(
            f"  table {model_id}: {entry['rows']} rows, {fresh}, search is {kind}"
            + (f", recall {recall:.3f}" if recall is not None else "")
        )


def _recordings(found: dict[str, Any]) -> str:
    """Number of recordings, and of files that are copies of others, in words."""
    copies = found["done"] - found["recordings"]
    note = f" ({found['done']} files hold them: {copies} are copies of others, byte for byte)" if copies else ""
    return f"{found['recordings']} recordings{note}"


def hits(results: Sequence[dict[str, Any]], say: Callable[[str], None], *, filtered: bool) -> None:
    """Print the hits of each query: a table with a line for each hit, and one for each other name of its file."""
    for result in results:
        if len(results) > 1:
            say(f"{shown(result['query'])}:")
        if not result["hits"]:
            say("no window matches the filter" if filtered else "no other window in the table")
            continue
        for line in _hits_table(result["hits"]):
            say(line)


def _hits_table(found: Sequence[Any]) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    has_distances = any(hit.distance is not None for hit in found)
    has_gains = any(hit.gain_db for hit in found)
    columns = [
        "",
        *(["same", "distance", "nearer than random pairs"] if has_distances else []),
        *(["gain"] if has_gains else []),
    ]
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="center" if heading == "same" else "right", no_wrap=True)
    table.add_column("place", justify="right", no_wrap=True)
    table.add_column("file", no_wrap=True)
    for rank, hit in enumerate(found, start=1):
        cells = [str(rank)]
        if has_distances:
            share = "" if hit.share_nearer is None else f"{100 * (1 - hit.share_nearer):.1f} %"
            distance = "" if hit.distance is None else f"{hit.distance:.3f}"
            cells += ["=" if hit.same_sound else "", distance, share]
        if has_gains:
            cells.append(f"{hit.gain_db:+.1f} dB" if hit.gain_db else "")
        label = f"  [{shown(hit.label)}]" if hit.label else ""
        file = f"{shown(hit.uri)}{label}"
        table.add_row(*cells, f"{hit.start_s:.2f}–{hit.end_s:.2f} s", Text(visible(file)))
        for other in hit.other_uris:
            table.add_row(*[""] * len(cells), "", Text(visible(f"also: {shown(other)}")))
    # Wide enough for the longest name: a name that is cut off or broken cannot be used.
    console = Console(width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def evaluation(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print how good a model is, and how good its baselines are."""
    say(
        f"model {found['model_id']} on {found['recordings']} recordings, {found['windows']} windows; "
        f"{found['held_out_recordings']} of these recordings were held out of training"
    )
    error, components = found["mse"]["model"], found["mse"]["PCA"]
    say(f"reconstruction of held-out recordings: mean square error {error:.3f}, principal components {components:.3f}")
    if found["probes"] is None:
        say(f"{found['labelled']} recordings with labels, {found['labels']} labels, no probes: {found['no_probes']}")
    else:
        say(
            f"labels predicted from the embeddings of {found['labelled']} recordings, {found['labels']} labels, "
            f"{found['folds']}, 95 % intervals:"
        )
        names = ["embedding", *baselines(found["probes"])]
        rows = {name: found["probes"][name] for name in names}
        rows |= {f"[{name}]": row for name, row in found["probes"].items() if name not in names}
        for line in _table(MEASURES, rows, lambda s: f"{s['value']:.3f} ({s['low']:.2f}–{s['high']:.2f})"):
            say(line)
        say("  in brackets: parts of this model, which are no baselines")
        ahead = ", ".join(f"{MEASURES[name]} {100 * points:+.1f}" for name, points in found["ahead"].items())
        say(f"points ahead of the best baseline: {ahead}")
    say("held-out windows found again after a disturbance:")
    shares = {f"[{name}]" if name in PARTS else name: row for name, row in found["consistency"].items()}
    for line in _table(DISTURBANCES, shares, lambda share: f"{share:.3f}"):
        say(line)
    say("what this means:")
    for line in _wrapped(found["verdict"]):
        say(f"  {line}")
    say(f"report  {found['report']}")


def _wrapped(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(sentence, 100, break_on_hyphens=False)]


def _table(columns: dict[str, str], rows: dict[str, Any], cell: Callable[[Any], str]) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = {name: title for name, title in columns.items() if all(name in row for row in rows.values())}
    table = Table("", *shown.values(), box=None, pad_edge=False)
    for name, row in rows.items():
        table.add_row(Text(name), *(cell(row[column]) for column in shown))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [f"  {line.rstrip()}" for line in capture.get().splitlines()]
