"""How often a random cut of a file finds that file first: `make bench-cuts AUDIO=folder LAKE=lake`.

Cuts of two seconds are taken at random places of random files at their own rate, written as WAV, and searched for.
Cuts for which search says that they hold no sound are counted apart and replaced.
"""

import argparse
import json
import os
import tempfile
import time

import numpy as np
import soundfile

from model.errors import InputError
from pipelines import ledger, lookup, table
from pipelines.audio import mono_blocks, probe
from pipelines.corpus import corpus_root, local_path
from pipelines.lake import Lake
from pipelines.search import Searcher, load_query


def main() -> None:
    """Search for random cuts; print a line for each miss, a summary, and the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", required=True)
    parser.add_argument("--lake", required=True)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args()

    lake, root = Lake.at(call.lake), corpus_root(call.audio)
    model = lookup.find_model(lake, None)
    searcher = Searcher(lake, model, table.need_table(lake, model.model_id))
    rows = ledger.open_ledger(lake, model.spec.spec_id).to_table(filter="status = 'done'").to_pylist()
    # Copies of one recording are one answer.
    rows = sorted((r for r in rows if r["corpus"] == root and r["duration_s"] > call.seconds), key=lambda r: r["uri"])
    if not rows:
        raise SystemExit(f"the lake {lake.root} holds no recording of {root} that is longer than {call.seconds} s")
    rng = np.random.default_rng(call.seed)
    first = digital_silence = quiet = placed = done = 0
    times = []
    with tempfile.TemporaryDirectory() as folder:
        cut = os.path.join(folder, "cut.wav")
        while done < call.cuts:
            row = rows[rng.integers(len(rows))]
            path = os.fsdecode(local_path(row["uri"]) or b"")
            found = probe(path)
            sound = np.concatenate(list(mono_blocks(path, found)))
            length = round(call.seconds * found.sample_rate)
            start = int(rng.integers(0, len(sound) - length + 1))
            part = sound[start : start + length]
            soundfile.write(cut, part, found.sample_rate, subtype="FLOAT")
            began = time.perf_counter()
            try:
                hits = searcher.by_sound(load_query(cut, model.spec), k=10, where=None, by="recordings")
            except InputError as error:
                if "no sound" not in str(error):
                    raise
                digital_silence += not part.any()
                quiet += bool(part.any())
                continue
            times.append(time.perf_counter() - began)
            done += 1
            if hits[0].recording_id == row["recording_id"]:
                first += 1
                placed += abs(hits[0].start_s - start / found.sample_rate) < 0.02
            else:
                print(f"missed: {row['uri']} at {start / found.sample_rate:.2f} s, peak {np.abs(part).max():.5f}")
    result = {"cuts": done, "found_first": first, "place_within_20_ms": placed, "digital_silence": digital_silence}
    result |= {"below_the_floor": quiet, "median_seconds": round(float(np.median(times)), 3), "seed": call.seed}
    print(
        f"{first} of {done} cuts of {call.seconds} s name their file first, {placed} at their place to 20 ms; besides, "
        f"{digital_silence} cuts were digital silence and {quiet} below the features' floor: search said so"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
