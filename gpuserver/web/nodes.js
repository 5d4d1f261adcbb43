/** Small makers of elements that the page's parts share. */

import { say } from './i18n.js';

/** A button that says what it does. @param {string} key @param {() => void} act */
export function button(key, act) {
  const made = node('button', 'primary');
  made.type = 'button';
  say(made, key);
  made.addEventListener('click', act);
  return made;
}

/** @param {string} tag @param {string} [className] @param {string} [text] */
export function node(tag, className = '', text = '') {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
