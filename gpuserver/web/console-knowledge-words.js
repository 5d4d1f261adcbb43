/** What the course material's parts have in common: how things are counted, told, and asked. */

import { has, language, languageOf, say, t } from './i18n.js';
import { Refusal } from './console-server.js';

/** `3 documents`, `1 document`. @param {string} key @param {number} count */
export function counted(key, count) {
  const one = `${key}.one`;
  return t(count === 1 && has(one) ? one : key, { count: count.toLocaleString('en-US') });
}

/** The sentence of a problem that the server tells in both languages, in the page's. */
export function problemIn({ code = '', detail = '', detail_zh: chinese = '' }) {
  if (language() !== 'zh') return detail;
  return chinese || (has(`error.${code}`) ? t(`error.${code}`) : detail);
}

/** A refusal as a sentence in the page's language. @param {Refusal} error */
export function refusalIn({ status, code, message, chinese }) {
  if (!status) return t('course.unreachable');
  return problemIn({ code, detail: message, detail_zh: chinese });
}

/** Shows a sentence that is made anew when the page's language changes. @param {Element} element @param {() => string} sentence */
export function saySentence(element, sentence, where = 'text') {
  say(element, 'course.said', { sentence }, where);
  // A sentence of the server may be in another language than the page.
  if (where === 'text') element.lang = languageOf(sentence());
}

/** Runs what may be refused and tells of it. @param {(error: Refusal) => void} tell @param {() => Promise<void>} act */
export async function attempted(tell, act) {
  try {
    await act();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    tell(error);
  }
}

let settle = (_yes) => {};

/**
 * Asks before something is lost.
 * @param {HTMLDialogElement} dialog @param {string} key @param {Record<string, unknown>} params
 * @returns {Promise<boolean>}
 */
export function sure(dialog, key, params) {
  const answered = () => dialog.returnValue === 'yes';
  settle(answered()); // That the question before this one was closed may not be told yet.
  say(dialog.querySelector('p'), key, params);
  dialog.returnValue = ''; // Escape leaves what was answered last time.
  dialog.showModal();
  return new Promise((resolve) => {
    settle = resolve;
    dialog.onclose = () => dialog.open || resolve(answered());
  });
}
