/**
 * An answer's Markdown as DOM nodes. Text only ever becomes text nodes, so nothing that a student, a
 * passage or a model writes can become markup.
 *
 * Paragraphs, headings, lists, fenced code, `code`, **strong**, *emphasis*, and `[n]` citations.
 */

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/;
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;
const BULLET = /^\s{0,3}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s+(.*)$/;
const INLINE = /(`+)(?!`)([\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|\*(?=\S)([^*\n]*?[^\s*])\*|\[(\d{1,3})\]/g;

/**
 * @param {string} source
 * @param {(n: number) => Node | null} [cite] makes the marker of citation `n`; null leaves its text
 * @returns {DocumentFragment}
 */
export function render(source, cite = () => null) {
  const fragment = document.createDocumentFragment();
  const lines = source.replace(/\r\n?/g, '\n').split('\n');
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim()) at = block(fragment, lines, at, cite);
    else at++;
  }
  return fragment;
}

/** Adds the block that starts at a line and returns the line after it. */
function block(parent, lines, at, cite) {
  const fence = FENCE.exec(lines[at]);
  if (fence) return codeBlock(parent, lines, at + 1, fence);
  const heading = HEADING.exec(lines[at]);
  if (heading) {
    add(parent, 'p', 'heading', heading[1], cite);
    return at + 1;
  }
  if (BULLET.test(lines[at])) return list(parent, 'ul', BULLET, lines, at, cite);
  if (NUMBER.test(lines[at])) return list(parent, 'ol', NUMBER, lines, at, cite);
  return paragraph(parent, lines, at, cite);
}

function codeBlock(parent, lines, start, [, mark, name]) {
  // A block that is still being written has no end yet: it runs to the last line.
  const isEnd = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], '');
  let end = start;
  while (end < lines.length && !isEnd(lines[end])) end++;
  const pre = parent.appendChild(document.createElement('pre'));
  pre.tabIndex = 0; // Wide code scrolls, by keyboard too.
  if (name) pre.dataset.language = name;
  pre.appendChild(document.createElement('code')).textContent = lines.slice(start, end).join('\n');
  return end + 1;
}

function list(parent, tag, item, lines, at, cite) {
  const element = parent.appendChild(document.createElement(tag));
  if (tag === 'ol') element.start = Number(item.exec(lines[at])[1]);
  let next = at;
  while (next < lines.length && item.test(lines[next])) {
    const text = [item.exec(lines[next]).at(-1)];
    next++;
    while (next < lines.length && /^\s{2,}\S/.test(lines[next]) && !item.test(lines[next])) {
      text.push(lines[next].trim());
      next++;
    }
    add(element, 'li', '', text.join(' '), cite);
  }
  return next;
}

function paragraph(parent, lines, at, cite) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end++;
  add(parent, 'p', '', lines.slice(at, end).join('\n'), cite);
  return end;
}

function startsBlock(line) {
  return [FENCE, HEADING, BULLET, NUMBER].some((start) => start.test(line));
}

function add(parent, tag, className, text, cite) {
  const element = parent.appendChild(document.createElement(tag));
  if (className) element.className = className;
  inline(element, text, cite);
}

function inline(parent, text, cite) {
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(last, match.index));
    parent.append(inlineNode(match, cite));
    last = match.index + match[0].length;
  }
  parent.append(text.slice(last));
}

function inlineNode([whole, , code, strong, emphasis, number], cite) {
  if (number !== undefined) return cite(Number(number)) ?? whole;
  const element = document.createElement(code !== undefined ? 'code' : strong !== undefined ? 'strong' : 'em');
  if (code !== undefined) element.textContent = code.replace(/^ (.*\S.*) $/, '$1');
  else inline(element, strong ?? emphasis, cite);
  return element;
}
