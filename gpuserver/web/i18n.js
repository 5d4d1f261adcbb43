/** The interface's language: which one it is, its sentences, and keeping shown text in step with it. */

import { STRINGS } from './strings.js';

/** @typedef {'en' | 'zh'} Language */

const STORED = 'classroom.language';
const TAGS = { en: 'en', zh: 'zh-CN' };
const HAN = /[\u3400-\u9fff\uf900-\ufaff]/g;

/** What each element shows, so that a switch of language can show it again: attribute → [key, params]. */
const shown = new WeakMap();

/** @type {Language} */
let current = 'en';

/** Reads from localStorage; null where the browser blocks storage. @param {string} key */
export function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Writes to localStorage, where the browser lets us. @param {string} key @param {string} value */
export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // The choice holds until the page is closed, which is all that is left to offer.
  }
}

/** The interface's language. @returns {Language} */
export function language() {
  return current;
}

/** The language to start in: the one chosen before, or the first of the browser's that we have. */
export function preferredLanguage() {
  const stored = recall(STORED);
  if (stored === 'en' || stored === 'zh') return stored;
  const tags = (navigator.languages ?? [navigator.language]).map((tag) => tag.slice(0, 2).toLowerCase());
  return tags.find((tag) => tag === 'en' || tag === 'zh') ?? 'en';
}

/**
 * Changes the interface's language and every text on the page with it.
 * @param {Language} to
 * @param {boolean} chosen whether a person chose it, so that it is remembered
 */
export function setLanguage(to, chosen = false) {
  current = to;
  document.documentElement.lang = TAGS[to];
  if (chosen) remember(STORED, to);
  for (const element of document.querySelectorAll('[data-i18n]')) refresh(element);
}

/** A control that names the other language in that language, for those who can't read this one. */
export function showOther(control) {
  const other = current === 'en' ? 'zh-CN' : 'en';
  control.textContent = current === 'en' ? '中文' : 'English';
  control.lang = other;
  say(control, 'page.language', {}, 'title');
}

/** Whether there is a sentence under this key. @param {string} key */
export function has(key) {
  return key in STRINGS[current];
}

/**
 * A sentence in the interface's language.
 * @param {string} key
 * @param {Record<string, unknown>} [params] values for `{name}` places; a function is called for its value
 */
export function t(key, params = {}) {
  return (STRINGS[current][key] ?? key).replace(/\{(\w+)\}/g, (place, name) => {
    const value = params[name];
    return value === undefined ? place : String(typeof value === 'function' ? value() : value);
  });
}

/**
 * Shows a sentence on an element and keeps it in step with the interface's language.
 * @param {Element} element
 * @param {string} key
 * @param {Record<string, unknown>} [params]
 * @param {'text' | string} [where] `text`, or the attribute that carries the sentence
 */
export function say(element, key, params = {}, where = 'text') {
  const places = shown.get(element) ?? new Map();
  places.set(where, [key, params]);
  shown.set(element, places);
  element.toggleAttribute('data-i18n', true);
  show(element, where, key, params);
}

/** Binds what index.html declares: `data-text`, `data-label`, `data-placeholder`, `data-tip`. */
export function bindMarkup(root = document) {
  const places = { text: 'text', label: 'aria-label', placeholder: 'placeholder', tip: 'title' };
  for (const [name, where] of Object.entries(places)) {
    for (const element of root.querySelectorAll(`[data-${name}]`)) {
      say(element, element.dataset[name], {}, where);
    }
  }
}

/** The language a text is written in, for its `lang` attribute. @param {string} text */
export function languageOf(text) {
  const han = (text.match(HAN) ?? []).length;
  // One Chinese character weighs as much as a short word; course terms stay English inside Chinese.
  return han > 0 && han * 5 >= text.replace(/[^A-Za-z]/g, '').length ? 'zh-CN' : 'en';
}

function refresh(element) {
  for (const [where, [key, params]] of shown.get(element) ?? []) show(element, where, key, params);
}

function show(element, where, key, params) {
  const sentence = t(key, params);
  // What stays the same is not read out again.
  if (where !== 'text') element.setAttribute(where, sentence);
  else if (element.textContent !== sentence) element.textContent = sentence;
}
