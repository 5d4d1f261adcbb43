"""The streaming dialect, `tutor.v2`: every event as it happens, numbered, kept for later."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final
from urllib.parse import quote

from gpuserver import protocol
from gpuserver.api.dialects import BEYOND_COURSE, Dialect, Frame, Outlet, bytes_of, now
from gpuserver.errors import GpuServerError, MessageInvalid, UpdateRefused
from gpuserver.language import LANGUAGES, Language, prose, sentences
from gpuserver.live import events as live_events
from gpuserver.live.dialogue import Manner
from gpuserver.live.live_session import LiveSession
from gpuserver.providers import Passage, names
from gpuserver.tutor import events
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.claims import without_links
from gpuserver.tutor.turn import Question

_QUOTE_CHARS: Final = 240
_FALLBACK: Final[Mapping[Language, str]] = {
    "en": "Answered by a smaller engine ({provider}): the tutor's own model isn't available.",
    "zh": "导师自己的模型暂时不可用，由较小的引擎（{provider}）回答。",
}
_PASSAGE: Final = "/v1/knowledge-bases/{}/documents/{}/passages/{}"


class DialectV2(Dialect):
    """One for each session: it outlives its sockets, and writes to the session's event log."""

    paced = True
    lasting = True

    def __init__(self, live: LiveSession, engine: AIEngine) -> None:
        super().__init__(live, engine)
        self._log = live.session.log
        self._audio = protocol.AudioSettings(
            sample_rate=engine.sample_rate,
            audio_format="base64",
            output=protocol.Output(),
            input_audio_format={"encoding": "pcm16", "sample_rate": 16000},
            turn_detection="server",
            language=engine.tutor.language,
            voice=engine.voices.get(engine.tutor.language, ""),
        )
        self._notice: str | None = None
        self._language: Language = engine.tutor.language
        self._adopt()

    # A client comes

    @property
    def returning(self) -> bool:
        return self._log.last_seq > 0

    def is_return(self, frame: str | None) -> bool:
        try:
            return frame is not None and isinstance(protocol.parse_v2(frame), protocol.Resume)
        except GpuServerError:
            return False

    def greet(self, outlet: Outlet, notice: GpuServerError | None) -> None:
        self._notice = None if notice is None else notice.sentence(self._language)
        self._follow(outlet, self._log.last_seq, resumed=False)

    def _resume(self, outlet: Outlet, last_seq: int) -> None:
        if outlet.resumed:
            raise MessageInvalid(problem="a connection is resumed once, at its beginning")
        outlet.resumed = True
        resumed = self._log.can_resume(last_seq)
        self._live.metrics.count_resume(resumed=resumed)
        if not resumed:
            # From the beginning means from whatever is kept of it.
            last_seq = self._log.last_seq if last_seq else self._log.lost_seq
        self._follow(outlet, last_seq, resumed=resumed)

    def _follow(self, outlet: Outlet, after: int, *, resumed: bool) -> None:
        outlet.follow(self._log.cursor(after, self._skipped), self._ready(after, resumed=resumed))

    def _ready(self, seq: int, *, resumed: bool) -> Frame:
        limits = self._live.limits
        return protocol.encode(
            protocol.SessionReady(
                seq,
                now(),
                session_id=self._live.session.id,
                tutor=describe(self._engine),
                limits=protocol.Limits(
                    limits.text_chars,
                    round(limits.turn.audio_seconds),
                    limits.message_bytes,
                    limits.messages_per_second,
                    limits.waiting_questions,
                ),
                audio=self._audio,
                engines=names(self._engine.keys),
                last_seq=self._log.last_seq,
                resumed=resumed,
                notice=self._notice,
            )
        )

    # What it sends

    def receive(self, frame: Frame, outlet: Outlet) -> None:
        if isinstance(frame, bytes):
            self._live.microphone.append(frame)
            return
        message = protocol.parse_v2(frame)
        if isinstance(message, protocol.AudioAppend):
            self._live.microphone.append(bytes_of(message.data))
            return
        self._live.check_alive(use=not isinstance(message, protocol.Ping))
        match message:
            case protocol.Playback(turn_id=turn_id, heard_ms=heard_ms):
                self._live.heard(turn_id, heard_ms)
            case protocol.Ping():
                # Not worth keeping for long: it is dropped like speech.
                pong = protocol.Pong(*self._stamp())
                self._log.append(pong.seq, protocol.encode(pong), audio=True)
            case protocol.Interrupt(turn_id=turn_id):
                self._live.interrupt(turn_id)
            case protocol.Resume(last_seq=last_seq):
                self._resume(outlet, last_seq)
            case _:
                self._act(message)

    def _act(self, message: protocol.ClientMessage) -> None:
        match message:
            case protocol.Text(content=content):
                self._live.ask(self._question(text=content), self)
            case protocol.AudioClip(data=data):
                self._engine.hears(self._language)
                self._live.ask(self._question(clip=bytes_of(data)), self)
            case protocol.AudioCommit():
                self._live.microphone.commit()
            case protocol.AudioClear():
                self._live.microphone.clear()
            case protocol.SessionUpdate():
                self._update(message)
            case protocol.Feedback(turn_id=turn_id, rating=rating, comment=comment):
                self._live.rate(turn_id, rating, comment)

    def _question(self, text: str = "", clip: bytes | None = None) -> Question:
        return Question(
            self._language,
            text=text,
            clip=clip,
            speak=self._audio.output.audio,
        )

    def _update(self, update: protocol.SessionUpdate) -> None:
        """Take over what is given, or nothing of it. Raises UpdateRefused."""
        audio = self._audio
        language: Language = update.language or self._language
        if update.voice is not None:
            language = self._language_of(update.voice)
        if update.output is not None:
            given = update.output.model_dump(exclude_none=True)
            audio = replace(audio, output=replace(audio.output, **given))
        if update.audio_format is not None:
            audio = replace(audio, audio_format=update.audio_format)
        if update.turn_detection is not None:
            audio = replace(audio, turn_detection=update.turn_detection)
        if update.input_audio_format is not None:
            audio = replace(audio, input_audio_format=update.input_audio_format.model_dump())
        self._language = language
        voice = self._engine.voices.get(language, "")
        self._audio = replace(audio, language=language, voice=voice)
        self._adopt()
        self._send(protocol.SessionUpdated(*self._stamp(), audio=self._audio))

    def _language_of(self, voice: str) -> Language:
        """A tutor has one voice for each language. Raises UpdateRefused."""
        for language, name in self._engine.voices.items():
            if name == voice:
                return language
        known = ", ".join(self._engine.voices.values()) or "none"
        raise UpdateRefused(problem=f"the voices here are: {known}")

    def _adopt(self) -> None:
        audio = self._audio
        self._live.adopt(
            Manner(
                self._language,
                speak=audio.output.audio,
                manual=audio.turn_detection == "manual",
                encoding=audio.input_audio_format["encoding"],
                sample_rate=audio.input_audio_format["sample_rate"],
            )
        )

    # What it is told

    def write(self, turn_id: str, event: live_events.LiveEvent) -> None:
        match event:
            case events.TextDelta(text):
                if self._audio.output.text:
                    self._send(protocol.TextDelta(*self._stamp(), turn_id, text))
            case events.SpeechChunk():
                self._speech(turn_id, event)
            case events.Started(question):
                self._send(protocol.TurnStarted(*self._stamp(), turn_id, question))
            case events.Recognised(heard):
                confidence = round(heard.confidence, 3)
                self._send(protocol.Transcription(*self._stamp(), turn_id, heard.text, confidence))
            case events.Sources(passages, near):
                cited, others = (
                    [_source(n, p) for n, p in enumerate(some, 1)] for some in (passages, near)
                )
                self._send(protocol.Sources(*self._stamp(), turn_id, cited, others))
            case events.TextDone(text):
                if self._audio.output.text:
                    self._send(protocol.TextWhole(*self._stamp(), turn_id, text))
            case events.Ended():
                self._ended(turn_id, event)
            case _:
                self._tell(turn_id, event)

    def _tell(self, turn_id: str, event: live_events.LiveEvent) -> None:
        """What happens before an answer."""
        match event:
            case events.Thought(text):
                if self._audio.output.text:
                    self._send(protocol.ThoughtDelta(*self._stamp(), turn_id, text))
            case events.AnsweredBy(provider):
                said = _FALLBACK[self._language].format(provider=provider)
                self._send(protocol.Notice(*self._stamp(), turn_id, "fallback", said, provider))
            case events.BeyondCourse():
                said = BEYOND_COURSE[self._language]
                self._send(protocol.Notice(*self._stamp(), turn_id, "not_from_course", said, ""))
            case live_events.Queued(position, eta_s) | events.InLine(position, eta_s):
                self._send(protocol.Queue(*self._stamp(), turn_id, position, eta_s))
            case _:
                self._tell_of_speech(turn_id, event)

    def _tell_of_speech(self, turn_id: str, event: live_events.LiveEvent) -> None:
        """What the student's speech does."""
        match event:
            case live_events.Partial(stable, tentative):
                self._send(protocol.TranscriptionDelta(*self._stamp(), stable, tentative))
            case live_events.SpeechStarted():
                self._send(protocol.SpeechStarted(*self._stamp()))
            case live_events.SpeechStopped():
                self._send(protocol.SpeechStopped(*self._stamp()))
            case live_events.SpeechPaused():
                self._send(protocol.AudioPaused(*self._stamp(), turn_id))
            case live_events.SpeechResumed():
                self._send(protocol.AudioResumed(*self._stamp(), turn_id))
            case live_events.Refused(error):
                self.refuse(error)

    def _speech(self, turn_id: str, event: events.SpeechChunk) -> None:
        """Mouth shapes and words first, so that they are there when the sound starts."""
        speech, start = event.speech, event.start_ms
        output = self._audio.output
        if output.visemes and (speech.visemes or speech.words):
            marks = [protocol.Mark(start + mark.ms, mark.viseme) for mark in speech.visemes]
            words = [
                protocol.Word(word.text, start + word.start_ms, start + word.end_ms)
                for word in speech.words
            ]
            self._send(protocol.Visemes(*self._stamp(), turn_id, marks, words))
        seq = self._log.next_seq()
        frame: Frame
        if self._audio.audio_format == "binary":
            frame = protocol.encode_speech(seq, int(turn_id[1:]), event.offset, speech.pcm)
        else:
            data = base64.b64encode(speech.pcm).decode()
            frame = protocol.encode(
                protocol.AudioDelta(seq, now(), turn_id, data, speech.sample_rate, event.offset)
            )
        self._log.append(seq, frame, audio=True)

    def _ended(self, turn_id: str, event: events.Ended) -> None:
        if event.status == "interrupted":
            # Nobody wants to hear what this client was too slow to take.
            self._log.drop_audio()
        if event.error is not None:
            self.refuse(event.error, turn_id)
        self._send(
            protocol.TurnDone(
                *self._stamp(),
                turn_id,
                event.status,
                dict(event.timeline),
                dict(event.usage),
                event.heard,
            )
        )

    def refuse(self, error: GpuServerError, turn_id: str | None = None) -> None:
        if turn_id is None:
            self._live.metrics.count_error(error.code)
        self._send(
            protocol.Error(
                *self._stamp(),
                error.code,
                error.sentence(self._language),
                error.retryable,
                turn_id,
                error.retry_after,
            )
        )

    def farewell(self, error: GpuServerError, last_seq: int | None = None) -> Frame:
        reason = str(error.details.get("reason", error.code))
        sentence = error.sentence(self._language)
        seq = self._log.last_seq if last_seq is None else last_seq
        return protocol.encode(protocol.SessionEnding(seq, now(), reason, sentence))

    @staticmethod
    def refusal(live: LiveSession, error: GpuServerError) -> Frame:
        return protocol.encode(
            protocol.Error(
                live.session.log.last_seq, now(), error.code, error.sentence("en"), error.retryable
            )
        )

    def _skipped(self, from_seq: int, to_seq: int) -> str:
        self._live.metrics.count_skipped_audio(to_seq - from_seq + 1)
        return protocol.encode(protocol.AudioSkipped(to_seq, now(), from_seq, to_seq))

    def _stamp(self) -> tuple[int, datetime]:
        return self._log.next_seq(), now()

    def _send(self, message: protocol.ServerMessage2) -> None:
        self._log.append(message.seq, protocol.encode(message))


def describe(engine: AIEngine) -> protocol.TutorInfo:
    """A tutor as pages need it."""
    tutor = engine.tutor
    missing = [language for language in LANGUAGES if language not in engine.listens]
    fix = f"ASR_PROVIDER ({', '.join(missing)})" if missing else ""
    return protocol.TutorInfo(
        tutor.id,
        tutor.name,
        tutor.language,
        tutor.greet(),
        list(LANGUAGES),
        list(engine.listens),
        list(engine.speaks),
        {str(language): voice for language, voice in engine.voices.items()},
        fix,
    )


def _source(n: int, passage: Passage) -> protocol.Source:
    return protocol.Source(
        n=n,
        document=passage.document,
        heading=passage.heading,
        page=passage.page,
        quote=_quote(passage),
        score=round(passage.similarity, 3),
        kb_id=passage.kb_id,
        document_id=passage.document_id,
        passage=passage.n,
        url=_PASSAGE.format(
            quote(passage.kb_id, safe=""), quote(passage.document_id, safe=""), passage.n
        ),
    )


def _quote(passage: Passage) -> str:
    """The passage's first sentences, whole ones as far as they fit."""
    between = "" if passage.language == "zh" else " "
    quote = ""
    for sentence in sentences(prose(without_links(passage.text))):
        longer = f"{quote}{between if quote else ''}{sentence}"
        if len(longer) > _QUOTE_CHARS:
            break
        quote = longer
    return quote or passage.text[: _QUOTE_CHARS - 1] + "…"
