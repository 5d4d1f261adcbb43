/** Sentences about course material: what can go wrong with it, and its passages in the classroom. */

export const en = {
  'passage.close': 'Close',
  'passage.open': 'Read it in the course: {title}',
  'passage.loading': 'Opening the passage',
  'passage.cited': 'The passage that the answer uses',
  'passage.before': 'Before it',
  'passage.after': 'After it',
  'passage.gone': 'This passage is no longer in the course. This is what the answer used:',
  'passage.refused': 'The passage can’t be opened now. This is what the answer used:',

  'notice.not_from_course': 'Your course doesn’t cover this, so the answer is from general knowledge.',

  'error.knowledge_base_id_invalid': 'An id has 1 to 64 of the characters A-Z a-z 0-9 _ . - and begins with a letter or a digit.',
  'error.knowledge_base_exists': 'There is a course with this id already.',
  'error.knowledge_base_read_only': 'This course comes with the server and can’t be changed here.',
  'error.knowledge_base_damaged': 'The course’s file on the server is damaged. Please tell your school.',
  'error.knowledge_base_outdated': 'The course has to be indexed again. Please tell your school.',
  'error.document_not_found': 'This document is no longer in the course.',
  'error.passage_not_found': 'This passage is no longer in the course.',
  'error.document_name_invalid': 'A document needs a file name of at most 200 printable characters.',
  'error.document_type_unknown': 'Files of this type can’t be read here.',
  'error.document_unreadable': 'This document can’t be read.',
  'error.document_empty': 'This document holds no text. If it is a scan, run it through text recognition (OCR) first.',
  'error.document_too_large': 'This document is too large.',
  'error.too_many_documents': 'This course holds as many documents as it may.',
  'error.archive_unsafe': 'This archive is refused.',
  'error.upload_invalid': 'The upload did not arrive whole; please send it again.',
  'error.questions_invalid': 'The file of questions can’t be used.',
  'error.disk_full': 'The server’s disk is full. Nothing was changed.',
};

/** @type {typeof en} */
export const zh = {
  'passage.close': '关闭',
  'passage.open': '查看课程原文：{title}',
  'passage.loading': '正在打开原文',
  'passage.cited': '回答所用的段落',
  'passage.before': '前文',
  'passage.after': '后文',
  'passage.gone': '课程里已经没有这一段。回答用到的是：',
  'passage.refused': '暂时无法打开原文。回答用到的是：',

  'notice.not_from_course': '课程里没有讲到这个问题，以下回答来自一般知识。',

  'error.knowledge_base_id_invalid': '编号由 1 到 64 个字符组成，只能用 A-Z a-z 0-9 _ . -，并以字母或数字开头。',
  'error.knowledge_base_exists': '已经有这个编号的课程。',
  'error.knowledge_base_read_only': '这门课程随服务器提供，不能在这里修改。',
  'error.knowledge_base_damaged': '服务器上这门课程的文件已损坏，请告诉学校。',
  'error.knowledge_base_outdated': '这门课程需要重新建立索引，请告诉学校。',
  'error.document_not_found': '课程里已经没有这个文档。',
  'error.passage_not_found': '课程里已经没有这一段。',
  'error.document_name_invalid': '文档需要一个不超过 200 个可见字符的文件名。',
  'error.document_type_unknown': '这里读不了这种类型的文件。',
  'error.document_unreadable': '无法读取这个文档。',
  'error.document_empty': '这个文档里没有文字。如果是扫描件，请先做文字识别（OCR）。',
  'error.document_too_large': '这个文档太大。',
  'error.too_many_documents': '这门课程的文档数量已到上限。',
  'error.archive_unsafe': '这个压缩包被拒绝。',
  'error.upload_invalid': '上传的内容不完整，请重新发送。',
  'error.questions_invalid': '无法使用这个问题文件。',
  'error.disk_full': '服务器磁盘已满。没有任何改动。',
};
