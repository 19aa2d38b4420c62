"""Log-mel alone on one core, compared with librosa, audioflux and kaldi-native-fbank.

`python -m benches.log_mel` · about a minute. The last two are not dependencies of soundlake, and are left out if they
are not installed.
"""

import importlib.util
import statistics
from collections.abc import Callable

import librosa
import numpy as np
from numpy.typing import NDArray

from benches.harness import Figure, faster, figure, interleaved, on_processor, pin, report
from benches.sounds import sound
from soundlake.model.features.log_mel import PRESETS, FeatureSpec, LogMel

SPEC = PRESETS["general"]
SECONDS, ROUNDS = 60, 150
INSTALL = {"audioflux": "audioflux", "kaldi_native_fbank": "kaldi-native-fbank"}

# Returns log-mel, float32, shape (n_frames, n_mels) or its transpose.
Side = Callable[[], NDArray[np.float32]]


def by_librosa(samples: NDArray[np.float32], spec: FeatureSpec) -> Side:
    """librosa in the usual way."""

    def side() -> NDArray[np.float32]:
        mel = librosa.feature.melspectrogram(
            y=samples,
            sr=spec.sample_rate,
            n_fft=spec.n_fft,
            hop_length=spec.hop_length,
            n_mels=spec.n_mels,
            fmin=spec.f_min,
            fmax=spec.f_max,
        )
        return np.log(mel + np.float32(spec.log_offset))

    return side


def by_audioflux(samples: NDArray[np.float32], spec: FeatureSpec) -> Side:
    """audioflux with one reused object, its fastest way. It supports only the HTK mel scale."""
    import audioflux
    from audioflux.type import SpectralDataType, SpectralFilterBankNormalType

    mel = audioflux.MelSpectrogram(
        num=spec.n_mels,
        radix2_exp=spec.n_fft.bit_length() - 1,
        samplate=spec.sample_rate,
        low_fre=spec.f_min,
        high_fre=spec.f_max,
        slide_length=spec.hop_length,
        normal_type=SpectralFilterBankNormalType.BAND_WIDTH,
        data_type=SpectralDataType.POWER,
    )

    def side() -> NDArray[np.float32]:
        return np.log(mel.spectrogram(samples) + np.float32(spec.log_offset))

    return side


def by_kaldi(samples: NDArray[np.float32], spec: FeatureSpec) -> Side:
    """kaldi-native-fbank in its librosa mode. It returns frames only one by one."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.use_log_fbank = False
    framing, mel = options.frame_opts, options.mel_opts
    framing.samp_freq = spec.sample_rate
    framing.frame_length_ms = 1000 * spec.n_fft / spec.sample_rate
    framing.frame_shift_ms = 1000 * spec.hop_length / spec.sample_rate
    framing.dither, framing.preemph_coeff, framing.remove_dc_offset, framing.window_type = 0, 0, False, "hann"
    mel.num_bins, mel.low_freq, mel.high_freq, mel.is_librosa = spec.n_mels, spec.f_min, spec.f_max, True

    def side() -> NDArray[np.float32]:
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(spec.sample_rate, samples)
        bank.input_finished()
        frames = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
        return np.log(frames + np.float32(spec.log_offset))

    return side


def reference(samples: NDArray[np.float32], spec: FeatureSpec, *, centred: bool, htk: bool) -> NDArray[np.float64]:
    """librosa's power mel spectrogram and its logarithm, every step in float64; shape (n_mels, n_frames)."""
    stft = librosa.stft(
        samples.astype(np.float64),
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        center=centred,
        dtype=np.complex128,
    )
    bank = librosa.filters.mel(
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        fmin=spec.f_min,
        fmax=spec.f_max,
        htk=htk,
        dtype=np.float64,
    )
    return np.log(bank @ np.abs(stft) ** 2 + spec.log_offset)


def errors(found: NDArray[np.float32], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """The largest difference of two log-mels, and the 99.9 % quantile of their differences, nats."""
    error = np.abs((found if found.shape == wanted.shape else found.T) - wanted)
    return float(error.max()), float(np.quantile(error, 0.999))


def main() -> None:
    """Measure all installed libraries; print and write the table."""
    pin(1)
    samples = np.concatenate(list(sound(rate=SPEC.sample_rate, seconds=SECONDS, channels=1)))[:, 0].copy()
    slaney = reference(samples, SPEC, centred=True, htk=False)
    whole_frames = reference(samples, SPEC, centred=False, htk=False)
    rivals = {"librosa": (by_librosa(samples, SPEC), slaney, "the same numbers")}
    if importlib.util.find_spec("audioflux"):
        htk = reference(samples, SPEC, centred=False, htk=True)
        rivals["audioflux"] = by_audioflux(samples, SPEC), htk, "HTK bands, whole frames"
    if importlib.util.find_spec("kaldi_native_fbank"):
        rivals["kaldi-native-fbank"] = by_kaldi(samples, SPEC), whole_frames, "whole frames"
    for module, package in INSTALL.items():
        if not importlib.util.find_spec(module):
            print(f"{package} is not installed and is left out; to have it: .venv/bin/pip install {package}")

    compute = LogMel(SPEC)

    def ours() -> NDArray[np.float32]:
        return compute(samples)

    sides = {"ours": ours} | {name: side for name, (side, _, _) in rivals.items()}
    took = interleaved({name: on_processor(side) for name, side in sides.items()}, rounds=ROUNDS)
    fastest = min(rivals, key=lambda name: statistics.median(took[name]))
    missing = len(INSTALL) + 1 - len(rivals)
    # The promise holds for the comparison with all libraries.
    least, note = None if missing else 1.4, f"{fastest} is the fastest"
    figures: list[Figure] = [faster("times the fastest of them", took[fastest], took["ours"], least=least, note=note)]
    for name, (side, target, comparison) in rivals.items():
        largest, quantile = errors(side(), target)
        note = f"{comparison}; to float64: most {largest:.1e}, p99.9 {quantile:.1e} nats"
        figures.append(faster(f"times {name}", took[name], took["ours"], note=note))
    largest, quantile = errors(ours(), slaney)
    figures += [
        figure("our error to librosa in float64, most, nats", [largest], most=3e-4),
        figure("our error to librosa in float64, p99.9, nats", [quantile], most=5e-5),
        figure("times real time", [SECONDS / seconds for seconds in took["ours"]]),
    ]
    title = f"Log-mel alone, one core, {SECONDS} s at {SPEC.sample_rate / 1000:g} kHz, {SPEC.n_fft}/{SPEC.hop_length}"
    report("log_mel", title + (f" ({missing} rivals not installed)" if missing else ""), figures)


if __name__ == "__main__":
    main()
