"""Every failure a client can meet: a code, an HTTP status and a sentence in English and Chinese."""

from __future__ import annotations

from typing import ClassVar


class GpuServerError(Exception):
    """Base of the tree. A subclass fills in the class attributes; `details` fill the sentence.

    `retryable` says whether the same request may succeed later, unchanged; `retry_after` (seconds)
    says when.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    en: ClassVar[str] = "Something went wrong in the server; the event is logged."
    zh: ClassVar[str] = "服务器出现了问题，已记录。"

    def __init__(self, *, retry_after: int | None = None, **details: object) -> None:
        self.details = details
        self.retry_after = retry_after
        super().__init__(self.sentence("en"))

    def sentence(self, language: str) -> str:
        """The error as one sentence in the language of a tag such as `en` or `zh-CN`."""
        template = self.zh if language.lower().startswith("zh") else self.en
        return template.format(**self.details)


def known_cause(group: BaseExceptionGroup[BaseException]) -> GpuServerError:
    """The failure to tell of, out of those of tasks that ran side by side.

    Raises the group itself when anything else is in it: that is a bug, not a failure.
    """
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return known_cause(error)
        if not isinstance(error, GpuServerError):
            raise group
    first = group.exceptions[0]
    assert isinstance(first, GpuServerError)
    return first


# Start-up: one sentence and the fix, then the process ends.


class ConfigurationError(GpuServerError):
    """The server can't start as it is configured."""

    code = "configuration_error"
    en = "{problem} Fix: {fix}"
    zh = "{problem} 解决办法：{fix}"


class FolderNotWritable(ConfigurationError):
    """`DATA_DIR` can't be used."""

    code = "folder_not_writable"
    en = (
        "The folder DATA_DIR={folder} can't be written ({reason}). "
        "Fix: make it writable for this user, or set DATA_DIR to a folder that is."
    )
    zh = (
        "无法写入文件夹 DATA_DIR={folder}（{reason}）。"
        "解决办法：让当前用户可以写入，或把 DATA_DIR 设为可写的文件夹。"
    )


class ProviderUnavailable(ConfigurationError):
    """A provider that was named, or that a tutor needs, can't run here."""

    code = "provider_unavailable"
    status = 503


class ModelTooLarge(ProviderUnavailable):
    """A model that does not fit, even with everything idle closed. `device`: GPU or CPU."""

    code = "model_too_large"
    en = (
        "{model} needs about {needs_mb} MB of {device} memory and {free_mb} MB can be had. "
        "Fix: unload a model, choose a smaller one, or lower LLM_GPU_SHARE or LLM_CACHE_MB."
    )
    zh = (
        "{model} 需要约 {needs_mb} MB {device} 内存，而可用的只有 {free_mb} MB。"
        "解决办法：卸载一个模型，换一个更小的，或调低 LLM_GPU_SHARE 或 LLM_CACHE_MB。"
    )


class OutOfMemory(ProviderUnavailable):
    """Memory ran out during a load, whatever was measured before. `device`: GPU or CPU."""

    code = "out_of_memory"
    en = (
        "{model} ran out of {device} memory while it was loaded. "
        "Fix: unload a model, choose a smaller one, or lower LLM_GPU_SHARE or LLM_CACHE_MB."
    )
    zh = (
        "加载 {model} 时 {device} 内存不足。"
        "解决办法：卸载一个模型，换一个更小的，或调低 LLM_GPU_SHARE 或 LLM_CACHE_MB。"
    )


# Management API


class NotReady(GpuServerError):
    code = "not_ready"
    status = 503
    retryable = True
    en = "The server is still loading its models ({stage}); try again in a moment."
    zh = "服务器正在加载模型（{stage}），请稍候再试。"


class ShuttingDown(GpuServerError):
    code = "shutting_down"
    status = 503
    retryable = True
    en = "The server is shutting down; try again in a moment."
    zh = "服务器正在关闭，请稍候再试。"


class KeyRefused(GpuServerError):
    code = "key_refused"
    status = 401
    en = "This call needs the management key: 'Authorization: Bearer <key>' or 'X-API-Key: <key>'."
    zh = "此操作需要管理密钥，请放在 Authorization: Bearer <key> 或 X-API-Key: <key> 中。"


class OriginRefused(GpuServerError):
    code = "origin_refused"
    status = 403
    en = "Requests from this web origin or host name are not allowed; see ALLOWED_ORIGINS."
    zh = "不允许来自该网页来源或主机名的请求，请查看 ALLOWED_ORIGINS 设置。"


class BodyTooLarge(GpuServerError):
    code = "body_too_large"
    status = 413
    en = "The request body is larger than {limit} bytes."
    zh = "请求内容超过 {limit} 字节。"


class BodyTooSlow(GpuServerError):
    code = "body_too_slow"
    status = 408
    retryable = True
    en = "The request body did not arrive within {limit} seconds."
    zh = "请求内容未能在 {limit} 秒内收齐。"


class SessionNotFound(GpuServerError):
    code = "session_not_found"
    status = 404
    en = "Session {session_id} not found"
    zh = "找不到会话 {session_id}"


class SessionLimitReached(GpuServerError):
    code = "session_limit"
    status = 503
    retryable = True
    en = "Maximum sessions ({limit}) reached"
    zh = "会话数已达上限（{limit}）"


class TutorNotFound(GpuServerError):
    code = "tutor_not_found"
    status = 404
    en = "Tutor {tutor_id} not found"
    zh = "找不到导师 {tutor_id}"


class KnowledgeBaseNotFound(GpuServerError):
    code = "knowledge_base_not_found"
    status = 404
    en = "There is no knowledge base {kb_id!r} here; answers use the tutor's own course."
    zh = "这里没有知识库 {kb_id!r}，将使用导师自己的课程回答。"


class ModelUnknown(GpuServerError):
    """Only what is configured or lies in the folder of models is loaded for a caller."""

    code = "model_unknown"
    status = 404
    en = (
        "There is no {kind} model {model!r} for {provider!r} here. "
        "Fix: fetch it into MODELS_DIR (gpuserver models pull), or name it in a tutor or in .env."
    )
    zh = (
        "这里没有用于 {provider!r} 的 {kind} 模型 {model!r}。"
        "解决办法：用 gpuserver models pull 下载到 MODELS_DIR，或在导师文件或 .env 中写上它。"
    )


class ModelNotLoaded(GpuServerError):
    code = "model_not_loaded"
    status = 404
    en = "The model {model} is not loaded."
    zh = "模型 {model} 没有加载。"


class ModelInUse(GpuServerError):
    code = "model_in_use"
    status = 409
    en = (
        "The model {model} is in use by {users}; "
        "it stays while somebody talks to them, and the default tutor's always."
    )
    zh = "模型 {model} 正被 {users} 使用；有人与其交谈时不能卸载，默认导师的模型始终保留。"


# Admission to a socket


class TokenRefused(GpuServerError):
    code = "token_refused"
    status = 403
    en = "The session or its token is not valid."
    zh = "会话或令牌无效。"


class Replaced(GpuServerError):
    code = "replaced"
    status = 409
    en = "This session was opened in another window; this one is now closed."
    zh = "该会话已在另一个窗口打开，本窗口现已关闭。"


class SessionEnded(GpuServerError):
    """`reason` is one of the `EndReason` values."""

    code = "session_ended"
    status = 410
    en = "The session has ended ({reason}); start a new one to go on."
    zh = "会话已结束（{reason}），请重新开始一个会话。"


# What a student sends


class MessageInvalid(GpuServerError):
    code = "bad_message"
    status = 400
    en = "This message could not be understood: {problem}."
    zh = "无法理解这条消息：{problem}。"


class TextEmpty(GpuServerError):
    code = "text_empty"
    status = 400
    en = "The question is empty; type or say something."
    zh = "问题是空的，请输入或说点什么。"


class TextTooLong(GpuServerError):
    code = "text_too_long"
    status = 400
    en = "The question is longer than {limit} characters; please shorten it."
    zh = "问题超过 {limit} 个字符，请缩短一些。"


class AudioInvalid(GpuServerError):
    code = "audio_invalid"
    status = 400
    en = "This is not audio we can read ({problem}); send WAV, WebM, Ogg, MP4, MP3 or FLAC."
    zh = "无法读取这段音频（{problem}），请发送 WAV、WebM、Ogg、MP4、MP3 或 FLAC。"


class AudioTooLong(GpuServerError):
    code = "audio_too_long"
    status = 400
    en = "The recording is longer than {limit} seconds; please ask in shorter pieces."
    zh = "录音超过 {limit} 秒，请分段提问。"


class NoSpeech(GpuServerError):
    code = "no_speech"
    status = 400
    en = "No speech was heard in the recording; check the microphone and try again."
    zh = "录音里没有听到说话声，请检查麦克风后再试。"


class NotUnderstood(GpuServerError):
    code = "not_understood"
    status = 400
    en = "The words could not be recognised; please say it again, or type it."
    zh = "没有听清，请再说一遍，或者直接输入文字。"


class SpeechUnavailable(GpuServerError):
    code = "speech_unavailable"
    status = 501
    en = "Speech in this language ({language}) can't be recognised here; please type. Set {fix}."
    zh = "这里没有配置该语言（{language}）的语音识别，请输入文字。需要设置 {fix}。"


class Busy(GpuServerError):
    code = "busy"
    status = 429
    retryable = True
    en = "Too many questions are waiting ({limit}); wait for an answer first."
    zh = "等待回答的问题太多（{limit} 个），请先等待回答。"


class AudioTooFast(GpuServerError):
    """The open microphone sends more than it can hear."""

    code = "audio_too_fast"
    status = 429
    retryable = True
    en = "The microphone's sound comes in faster than real time; some of it was left out."
    zh = "麦克风声音的发送速度超过实时，部分内容已被丢弃。"


class UpdateRefused(GpuServerError):
    code = "update_refused"
    status = 400
    en = "This setting can't be used here: {problem}."
    zh = "这里无法使用该设置：{problem}。"


class TurnUnknown(GpuServerError):
    code = "turn_unknown"
    status = 404
    en = "This session has no turn {turn_id!r}."
    zh = "此会话中没有轮次 {turn_id!r}。"


# A turn that could not be finished


class TurnTimeout(GpuServerError):
    code = "turn_timeout"
    status = 504
    retryable = True
    en = "The answer took longer than {limit} seconds and was stopped; please ask again."
    zh = "回答超过 {limit} 秒，已停止，请重新提问。"


class AnswerTooLong(GpuServerError):
    code = "answer_too_long"
    status = 502
    en = "The answer grew longer than {limit} characters and was stopped."
    zh = "回答超过 {limit} 个字符，已停止。"


class EngineStalled(GpuServerError):
    """A model that hangs: no first word, or no next one."""

    code = "engine_stalled"
    status = 504
    retryable = True
    en = "The {engine} engine gave nothing for {limit} seconds; please try again."
    zh = "{engine} 引擎 {limit} 秒没有响应，请再试一次。"


class Restarted(GpuServerError):
    code = "restarted"
    status = 503
    retryable = True
    en = "The server was restarted during this answer; please ask again."
    zh = "回答过程中服务器重新启动，请重新提问。"


class EngineBusy(GpuServerError):
    """A model has as many questions running and waiting as it takes."""

    code = "engine_busy"
    status = 503
    retryable = True
    en = "The tutor is answering many questions right now; please try again in {seconds} seconds."
    zh = "现在提问的人很多，请在 {seconds} 秒后再试。"

    def __init__(self, *, seconds: int) -> None:
        super().__init__(retry_after=seconds, seconds=seconds)


class PromptTooLong(GpuServerError):
    """More words than the model takes in, with nothing left to leave out."""

    code = "prompt_too_long"
    status = 400
    en = "The question is longer than the tutor's model can take in; please shorten it."
    zh = "问题太长，导师使用的模型无法处理，请缩短一些。"


class EngineFailed(GpuServerError):
    """A model stopped in the middle of its work; no answer is invented in its place."""

    code = "engine_failed"
    status = 503
    retryable = True
    en = "The {engine} engine failed while working on this; please try again."
    zh = "{engine} 引擎在处理时出错，请再试一次。"
