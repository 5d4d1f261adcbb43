/** Small makers of elements that the page's parts share. */

import { say } from './i18n.js';

/**
 * A button that says what it does.
 * @param {string} key
 * @param {() => void} act
 * @param {number} [after] seconds before it can be pressed, which it counts down (`<key>In`)
 */
export function button(key, act, after = 0) {
  const made = node('button', 'primary');
  made.type = 'button';
  say(made, key);
  made.addEventListener('click', act);
  if (after > 0) countDown(made, key, after);
  return made;
}

function countDown(press, key, after) {
  const end = performance.now() + after * 1000;
  press.setAttribute('aria-live', 'off'); // An alert that it stands in is not read out each second.
  const tick = () => {
    const seconds = Math.ceil((end - performance.now()) / 1000);
    press.disabled = seconds > 0;
    if (seconds > 0) {
      say(press, `${key}In`, { seconds });
      setTimeout(tick, 250);
    } else say(press, key);
  };
  tick();
}

/** @param {string} tag @param {string} [className] @param {string} [text] */
export function node(tag, className = '', text = '') {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
