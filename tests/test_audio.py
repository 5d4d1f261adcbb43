"""Decoding: what must be refused first, then what browsers send."""

from __future__ import annotations

import io
import resource
import struct
import time
import wave
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame

from gpuserver.audio import Audio, decode, wav
from gpuserver.errors import AudioInvalid, AudioTooLong
from gpuserver.microphone import Microphone
from tests.speech import encode, flite, joined, noise, silence, webm_opus

LIMIT = 60


def tone(seconds: float) -> Audio:
    t = np.arange(int(seconds * 16_000)) / 16_000
    return Audio((np.sin(t * 2 * np.pi * 440) * 8000).astype(np.int16))


def header(**fields: int) -> bytes:
    """A WAV of a second of sound, with fields of its header overwritten."""
    places = {"size": ("<I", 40), "rate": ("<I", 24), "channels": ("<H", 22), "block": ("<H", 32)}
    data = bytearray(wav(tone(1).samples.tobytes(), 16_000))
    for name, value in fields.items():
        kind, at = places[name]
        struct.pack_into(kind, data, at, value)
    return bytes(data)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def hour_of_opus() -> bytes:
    """An hour of silence in about 100 kB: one packet of a tenth of a second, 30,000 times."""
    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as file:
        stream = file.add_stream("libopus", rate=48_000, options={"frame_duration": "120"})
        assert isinstance(stream, AudioStream)
        stream.layout = "mono"
        frame = AudioFrame.from_ndarray(np.zeros((1, 5760), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48_000
        stream.codec_context.open()
        packets = [packet for _ in range(4) for packet in stream.encode(frame)]
        silent = min(bytes(packet) for packet in packets)
        for number in range(30_000):
            packet = Packet(silent)
            packet.stream = stream
            packet.time_base = Fraction(1, 48_000)
            packet.pts = packet.dts = number * 5760
            packet.duration = 5760
            file.mux(packet)
    return out.getvalue()


def hour_of_flac() -> bytes:
    return encode(joined(silence(3600)), "flac", "flac", 16_000)


@pytest.mark.slow
@pytest.mark.parametrize("make", [hour_of_opus, hour_of_flac])
def test_an_hour_in_a_small_file_stops_at_the_cap(make: Callable[[], bytes]) -> None:
    hour = make()
    assert len(hour) < 800_000
    before, started = peak_memory(), time.process_time()
    with pytest.raises(AudioTooLong, match="longer than 60 seconds"):
        decode(hour, LIMIT)
    assert time.process_time() - started < 2
    assert peak_memory() - before < 50


def test_a_long_recording_is_refused_by_what_it_holds_not_by_what_it_says() -> None:
    assert decode(header(size=0xFFFFFF00), LIMIT).seconds == pytest.approx(1, abs=0.01)
    assert decode(header(size=0xFFFFFF00)[:364], LIMIT).seconds == pytest.approx(0.01, abs=0.001)
    with pytest.raises(AudioTooLong):
        decode(header(size=0xFFFFFF00), 0.25)


def test_exactly_the_cap_is_accepted() -> None:
    assert decode(header(), 1.0).seconds == 1.0


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 10_000,
        b"RIFF",
        header()[:44],
        b"just some text, not sound\n" * 500,
        np.random.default_rng(0).bytes(100_000),
        b"\x89PNG\r\n\x1a\n" + bytes(2000),
        b"PK\x03\x04" + bytes(500),
        PLAYLIST,
        CONCAT,
        SDP,
        header(rate=0),
        header(rate=1),
        header(rate=700_000),
        header(channels=0),
        header(channels=64, block=128),
    ],
)
def test_what_is_not_audio_is_refused_in_one_plain_sentence(
    data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AudioInvalid) as caught:
        decode(data, LIMIT)
    sentence = str(caught.value)
    assert "<none>" not in sentence
    assert "Errno" not in sentence
    assert capfd.readouterr() == ("", "")


def test_video_without_sound_is_refused() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=10, options={})
        stream.width = stream.height = 64
        for _ in range(10):
            frame = VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(AudioInvalid, match="no sound track"):
        decode(out.getvalue(), LIMIT)


def test_hundreds_of_tracks_cost_nothing() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        tracks = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(200)]
        for track in tracks:
            frame = AudioFrame.from_ndarray(tone(0.1).samples[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            frame.pts = 0
            file.mux(track.encode(frame))
    started = time.process_time()
    with suppress(AudioInvalid):
        assert decode(out.getvalue(), LIMIT).seconds < 1
    assert time.process_time() - started < 5


def test_a_truncated_clip_gives_what_it_holds() -> None:
    clip = webm_opus(tone(4))
    whole = decode(clip, LIMIT).seconds
    half = decode(clip[: len(clip) // 2], LIMIT).seconds
    assert 0.5 < half < whole
    for length in (1, 10, 100, 300):
        with pytest.raises(AudioInvalid):
            decode(clip[:length], LIMIT)


def test_a_damaged_clip_does_not_break_the_decoder() -> None:
    clip = bytearray(webm_opus(joined(flite("hello there"), noise(1))))
    rng = np.random.default_rng(3)
    for _ in range(60):
        damaged = clip.copy()
        for at in rng.integers(0, len(clip), 20):
            damaged[at] = int(rng.integers(0, 256))
        with suppress(AudioInvalid, AudioTooLong):
            decode(bytes(damaged), LIMIT)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("webm", "libopus", 48_000),
        ("ogg", "libopus", 48_000),
        ("mp4", "aac", 44_100),
        ("adts", "aac", 44_100),
        ("mp3", "libmp3lame", 44_100),
        ("flac", "flac", 22_050),
        ("wav", "pcm_s16le", 8_000),
        ("matroska", "pcm_s16le", 16_000),
    ],
)
def test_what_browsers_and_phones_record_is_read(container: str, codec: str, rate: int) -> None:
    audio = decode(encode(tone(2), container, codec, rate), LIMIT)
    assert audio.sample_rate == 16_000
    assert audio.samples.dtype == np.int16
    assert audio.samples.ndim == 1
    assert audio.seconds == pytest.approx(2, abs=0.1)
    loudest = np.abs(np.fft.rfft(audio.samples[8000:24000])).argmax()  # one bin a hertz
    assert loudest == pytest.approx(440, abs=2)


def test_stereo_becomes_mono() -> None:
    left = tone(1).samples
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.stack([left, left], axis=1).tobytes())
    assert np.abs(decode(out.getvalue(), LIMIT).samples.astype(int) - left).max() <= 2


def test_a_written_wav_is_playable_and_unchanged() -> None:
    samples = flite("hello").samples
    data = wav(samples.tobytes(), 16_000)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        assert file.getnframes() == len(samples)
    assert np.array_equal(decode(data, LIMIT).samples, samples)
    assert wav(b"", 22_050).startswith(b"RIFF")


# Floats that are no sound


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_floats_that_are_no_sound_become_silence(rate: int) -> None:
    samples = np.full(rate, 0.5, np.float32)
    samples[:100], samples[100:200], samples[200:300] = np.nan, np.inf, -np.inf
    samples[300] = 1e30
    out = io.BytesIO()
    out.write(struct.pack("<4sI4s4sIHHII", b"RIFF", 0, b"WAVE", b"fmt ", 16, 3, 1, rate, rate * 4))
    out.write(struct.pack("<HH4sI", 4, 32, b"data", samples.nbytes) + samples.tobytes())
    heard = decode(out.getvalue(), LIMIT).samples
    assert np.abs(heard[:20]).max() < 3000
    assert heard[8000] == pytest.approx(16_384, abs=2)


# An open microphone


def fed(microphone: Microphone, data: bytes, step: int) -> np.ndarray:
    pieces = [microphone.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return np.concatenate(pieces)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("step", [1, 333, 960, 10**6])
def test_pcm_in_any_pieces(rate: int, step: int) -> None:
    seconds = 0.25 if step == 1 else 2
    t = np.arange(int(rate * seconds)) / rate
    data = (np.sin(t * 2 * np.pi * 440) * 8000).astype("<i2").tobytes()
    heard = fed(Microphone("pcm16", rate), data, step)
    assert heard.dtype == np.int16
    assert len(heard) / 16_000 == pytest.approx(seconds, abs=0.06)
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() * 16_000 / len(heard) == pytest.approx(440, abs=5)


def test_half_a_sample_is_kept_or_dropped() -> None:
    microphone = Microphone()
    assert len(microphone.feed(b"")) == 0
    assert len(microphone.feed(b"\x01")) == 0
    assert microphone.feed(b"\x02\x03").tolist() == [0x0201]
    microphone.drop_partial()
    assert microphone.feed(b"\x05\x06").tolist() == [0x0605]


@pytest.mark.parametrize("step", [1, 7, 500, 10**6])
def test_webm_in_any_pieces_is_what_the_whole_is(step: int) -> None:
    clip = webm_opus(joined(flite("hello there"), noise(1)))
    heard = fed(Microphone("webm"), clip, step)
    whole = decode(clip, LIMIT).samples
    assert np.array_equal(heard[: len(whole) - 400], whole[: len(whole) - 400])


def test_a_recording_may_begin_again_at_any_point() -> None:
    clip = webm_opus(flite("hello there"))
    microphone = Microphone("webm")
    once = len(microphone.feed(clip))
    microphone.feed(clip[: len(clip) // 2 + 3])
    assert len(microphone.feed(clip)) == once


def test_a_recorder_that_knows_no_lengths() -> None:
    """Chrome writes its segment and clusters while they are still growing."""
    clip = webm_opus(flite("hello there"))
    at = clip.index(b"\x18\x53\x80\x67")
    unknown = clip[: at + 4] + b"\x01" + b"\xff" * 7 + clip[at + 12 :]
    assert np.array_equal(Microphone("webm").feed(unknown), Microphone("webm").feed(clip))


@pytest.mark.parametrize(
    "data",
    [
        b"garbage" * 100,
        b"\0" * 100,
        b"\xff" * 100,
        wav(tone(0.1).samples.tobytes(), 16_000),
        encode(tone(1), "ogg", "libopus"),
        encode(tone(1), "matroska", "pcm_s16le", 16_000),
    ],
)
def test_what_is_no_webm_of_opus_is_refused(data: bytes) -> None:
    microphone = Microphone("webm")
    with pytest.raises(AudioInvalid):
        fed(microphone, data, 300)
    assert len(microphone.feed(webm_opus(tone(1)))) > 15_000


def test_a_damaged_webm_does_not_break_the_decoder() -> None:
    clip = bytearray(webm_opus(joined(flite("hello there"), noise(0.5))))
    rng = np.random.default_rng(3)
    for _ in range(60):
        damaged = clip.copy()
        for at in rng.integers(0, len(clip), 10):
            damaged[at] = int(rng.integers(0, 256))
        microphone = Microphone("webm")
        with suppress(AudioInvalid):
            fed(microphone, bytes(damaged), 500)


def test_more_than_was_asked_for_is_left_out() -> None:
    clip = webm_opus(tone(4))
    for microphone, data in (
        (Microphone("webm"), clip),
        (Microphone("pcm16", 48_000), bytes(4 * 96_000)),
        (Microphone(), bytes(4 * 32_000)),
    ):
        assert len(microphone.feed(data, 16_000)) == pytest.approx(16_000, abs=1000)
        assert microphone.overflowed
        microphone.feed(b"")
        assert not microphone.overflowed


def test_a_flood_that_never_ends_an_element_holds_no_memory() -> None:
    clip = webm_opus(tone(1))
    microphone = Microphone("webm")
    microphone.feed(clip)
    before = peak_memory()
    with suppress(AudioInvalid):
        for _ in range(200):
            microphone.feed(b"\xa3\x10\x01\x00\x00" + bytes(100_000))
    assert peak_memory() - before < 20
