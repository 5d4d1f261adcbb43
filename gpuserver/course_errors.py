"""What can go wrong with course material: knowledge bases, documents, uploads."""

from __future__ import annotations

from gpuserver.errors import GpuServerError


class KnowledgeBaseIdInvalid(GpuServerError):
    """A knowledge base can't be made under this id."""

    code = "knowledge_base_id_invalid"
    status = 422
    en = (
        "A knowledge base's id has 1 to 64 of the characters A-Z a-z 0-9 _ . -, begins with a "
        "letter or a digit and does not end with a dot; 'events' and 'import' are taken."
    )
    zh = (
        "知识库编号由 1 到 64 个字符组成，只能用 A-Z a-z 0-9 _ . -，以字母或数字开头，"
        "不以句点结尾；events 和 import 不可用。"
    )


class KnowledgeBaseExists(GpuServerError):
    code = "knowledge_base_exists"
    status = 409
    en = "There is a knowledge base {kb_id!r} already."
    zh = "知识库 {kb_id!r} 已经存在。"


class KnowledgeBaseReadOnly(GpuServerError):
    """A course of the tutors file: its folder is the place to change it."""

    code = "knowledge_base_read_only"
    status = 409
    en = "{kb_id!r} is a course of the tutors file; change its folder and restart the server."
    zh = "{kb_id!r} 是导师配置文件里的课程，请修改它的文件夹并重启服务器。"


class KnowledgeBaseDamaged(GpuServerError):
    """Its file can't be read; others are not touched."""

    code = "knowledge_base_damaged"
    status = 503
    en = "The file of the knowledge base {kb_id!r} is damaged; delete it or import it again."
    zh = "知识库 {kb_id!r} 的文件已损坏，请删除或重新导入。"


class KnowledgeBaseBusy(GpuServerError):
    """Another process holds its file, such as a backup; nothing was changed."""

    code = "knowledge_base_busy"
    status = 503
    retryable = True
    en = (
        "The file of the knowledge base {kb_id!r} is held by another program, such as a backup; "
        "try again when that is done."
    )
    zh = "知识库 {kb_id!r} 的文件正被其他程序（例如备份）占用，请等它结束后重试。"


class KnowledgeBaseNotDeleted(GpuServerError):
    """The server may not write where it lies; nothing was changed."""

    code = "knowledge_base_not_deleted"
    status = 503
    retryable = True
    en = (
        "The knowledge base {kb_id!r} can't be deleted: the server may not write in its folder "
        "under DATA_DIR/knowledge. Let it, and try again."
    )
    zh = (
        "无法删除知识库 {kb_id!r}：服务器不能写入它在 DATA_DIR/knowledge 下的文件夹，"
        "请修改权限后重试。"
    )


class KnowledgeBaseUnprepared(GpuServerError):
    """Nothing of it is indexed yet: what a student of it is told."""

    code = "knowledge_base_unprepared"
    status = 503
    retryable = True
    en = (
        "The knowledge base {kb_id!r} is still being prepared; until then answers use the tutor's "
        "own course."
    )
    zh = "知识库 {kb_id!r} 还在准备中，在此之前将使用导师自己的课程回答。"


class KnowledgeBaseUnreadable(GpuServerError):
    """It, or each of its documents, has a problem: what a student of it is told."""

    code = "knowledge_base_unreadable"
    status = 503
    en = (
        "The knowledge base {kb_id!r} could not be read; answers use the tutor's own course. "
        "Please tell your teacher."
    )
    zh = "知识库 {kb_id!r} 无法读取，将使用导师自己的课程回答。请告诉你的老师。"


class KnowledgeBaseOutdated(GpuServerError):
    """Its vectors are another embedding model's, and took too long to be thrown away unasked."""

    code = "knowledge_base_outdated"
    status = 503
    en = (
        "The knowledge base {kb_id!r} was indexed by {made_by} in {minutes} minutes, and the "
        "embedding model is now {model}; set EMBEDDINGS_PROVIDER and EMBEDDINGS_MODEL back, or "
        "index its documents again."
    )
    zh = (
        "知识库 {kb_id!r} 由 {made_by} 用 {minutes} 分钟建立索引，而现在的嵌入模型是 {model}，"
        "请改回 EMBEDDINGS_PROVIDER 和 EMBEDDINGS_MODEL，或重新索引其中的文档。"
    )


class DocumentNotFound(GpuServerError):
    code = "document_not_found"
    status = 404
    en = "This knowledge base has no document {document_id!r}."
    zh = "这个知识库里没有文档 {document_id!r}。"


class PassageNotFound(GpuServerError):
    code = "passage_not_found"
    status = 404
    en = "This document has no passage {n}."
    zh = "这个文档里没有第 {n} 段。"


class DocumentNameInvalid(GpuServerError):
    code = "document_name_invalid"
    status = 422
    en = "A document needs a file name of at most 200 printable characters."
    zh = "文档需要一个不超过 200 个可见字符的文件名。"


class DocumentTypeUnknown(GpuServerError):
    code = "document_type_unknown"
    status = 415
    en = (
        "{name!r} can't be read here; upload PDF, DOCX, PPTX, Markdown, HTML, text or CSV, or a "
        "zip of them."
    )
    zh = "无法读取 {name!r}，请上传 PDF、DOCX、PPTX、Markdown、HTML、文本或 CSV，或它们的 zip 包。"


class DocumentHidden(GpuServerError):
    """What a system or a program keeps beside documents."""

    code = "document_hidden"
    status = 422
    en = "{name!r} is a hidden or temporary file; upload the document itself, or rename it."
    zh = "{name!r} 是隐藏文件或临时文件，请上传文档本身，或将其重命名。"


class DocumentUnreadable(GpuServerError):
    """`problem` and `problem_zh` say what is wrong with the file, with no word of its content."""

    code = "document_unreadable"
    status = 422
    en = "The document {name!r} can't be read: {problem}."
    zh = "无法读取文档 {name!r}：{problem_zh}。"


class DocumentEmpty(GpuServerError):
    """A scan, or nothing at all."""

    code = "document_empty"
    status = 422
    en = "The document {name!r} holds no text. If it is a scan, run it through OCR first."
    zh = "文档 {name!r} 里没有文字。如果是扫描件，请先做文字识别（OCR）。"


class DocumentTooLarge(GpuServerError):
    code = "document_too_large"
    status = 413
    en = "A document may have {limit} (MAX_UPLOAD_MB, MAX_PAGES); {name!r} has more."
    zh = "文档最多 {limit_zh}（MAX_UPLOAD_MB、MAX_PAGES），{name!r} 超出了限制。"

    def __init__(self, *, name: str, limit: str, limit_zh: str = "") -> None:
        super().__init__(name=name, limit=limit, limit_zh=limit_zh or limit)


class TooManyDocuments(GpuServerError):
    code = "too_many_documents"
    status = 409
    en = "A knowledge base holds {limit} documents at most (MAX_DOCUMENTS)."
    zh = "一个知识库最多 {limit} 个文档（MAX_DOCUMENTS）。"


class ArchiveUnsafe(GpuServerError):
    """An archive that would leave its folder, inflates beyond bounds, or holds others."""

    code = "archive_unsafe"
    status = 422
    en = "The archive {name!r} is refused: {problem}."
    zh = "压缩包 {name!r} 被拒绝：{problem_zh}。"


class UploadInvalid(GpuServerError):
    """No multipart form with a file in it, or one that was cut in the middle."""

    code = "upload_invalid"
    status = 422
    en = "The upload can't be used: {problem}."
    zh = "无法使用上传的内容：{problem_zh}。"


class DiskFull(GpuServerError):
    code = "disk_full"
    status = 507
    retryable = True
    en = "The server's disk is full; free some space and try again. Nothing was changed."
    zh = "服务器磁盘已满，请腾出空间后重试。没有任何改动。"


class QuestionsInvalid(GpuServerError):
    """A file of questions for an evaluation that can't be used."""

    code = "questions_invalid"
    status = 422
    en = "Line {line} of the questions can't be used: {problem}."
    zh = "问题文件第 {line} 行无法使用：{problem}。"
