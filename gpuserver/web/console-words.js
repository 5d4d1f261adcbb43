/** Sizes, spans, times and names as the console writes them, in the interface's language. */

import { has, language, t } from './i18n.js';

const GB = 1024;
const SPANS = [['d', 86400], ['h', 3600], ['min', 60]];

/** Megabytes, as the API counts them. @param {number} mb */
export function size(mb) {
  if (mb < 1000) return t('unit.mb', { count: Math.round(mb) });
  return t('unit.gb', { count: (mb / GB).toFixed(mb < 100 * GB ? 1 : 0) });
}

/** The size of a file. @param {number} bytes */
export function fileSize(bytes) {
  const mb = bytes / (1024 * 1024);
  if (mb >= 10) return size(mb);
  if (mb >= 1) return t('unit.mb', { count: mb.toFixed(1) });
  return t('unit.kb', { count: Math.max(1, Math.round(bytes / 1024)) });
}

/** The two largest units of a span. @param {number} seconds */
export function span(seconds) {
  const parts = [];
  let rest = Math.floor(seconds);
  for (const [unit, length] of SPANS) {
    const count = Math.floor(rest / length);
    rest %= length;
    if (count || parts.length) parts.push([unit, count]);
  }
  const largest = (parts.length ? parts : [['s', rest]]).slice(0, 2).filter(([, count], n) => count || n === 0);
  return largest.map(([unit, count]) => t(`unit.${unit}`, { count })).join(' ');
}

/** The time of day, with the date where it is not today's. @param {Date} when */
export function clock(when) {
  const time = { hour: '2-digit', minute: '2-digit' };
  const today = when.toDateString() === new Date().toDateString();
  const parts = today ? time : { ...time, month: 'short', day: 'numeric' };
  return when.toLocaleString(language() === 'zh' ? 'zh-CN' : 'en-GB', parts);
}

/** A list of kinds of models in words. @param {string[]} kinds */
export function kinds(kinds) {
  return kinds.map((kind) => named('kind', kind)).join(t('list.comma'));
}

/** The word for a server's word, which stands for itself where there is none. */
export function named(group, word) {
  return has(`${group}.${word}`) ? t(`${group}.${word}`) : word;
}

/** What a model is called: of a folder its last part, where two hyphens stand for a name's slash. */
export function modelName({ provider, model }) {
  if (!model) return provider;
  if (!/^[./~]/.test(model)) return model;
  const last = model.replace(/\/+$/, '').split('/').pop();
  return last.startsWith('tts_models--') ? last.replaceAll('--', '/') : last.replace('--', '/');
}
