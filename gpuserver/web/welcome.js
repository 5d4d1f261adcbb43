/** What is shown before a conversation: the models loading, the tutors to choose from, a problem. */

import { button, node } from './nodes.js';
import { drawFace } from './face.js';
import { languageOf, say, t } from './i18n.js';

/** @param {HTMLElement} place */
export function showOpening(place) {
  const panel = node('div', 'panel');
  panel.append(node('span', 'spinner'));
  say(panel.appendChild(node('p')), 'welcome.connecting');
  place.replaceChildren(panel);
}

/**
 * The models that load; call it again with each answer of `GET ready`.
 * @param {HTMLElement} place
 * @param {{stage: string, done: number, total: number}} progress
 */
export function showLoading(place, { stage, done, total }) {
  const panel = place.querySelector('.loading') ?? loadingPanel(place);
  const bar = panel.querySelector('progress');
  if (total > 0) Object.assign(bar, { max: total, value: done });
  panel.querySelector('.stage').textContent = stage;
  panel.querySelector('.count').textContent = total > 0 ? `${done} / ${total}` : '';
}

function loadingPanel(place) {
  const panel = node('div', 'panel loading');
  say(panel.appendChild(node('h2')), 'welcome.loading');
  const sentence = panel.appendChild(node('p'));
  sentence.setAttribute('role', 'status');
  say(sentence, 'welcome.models');
  say(panel.appendChild(node('progress')), 'welcome.progress', {}, 'aria-label');
  const line = panel.appendChild(node('p', 'fine'));
  line.append(node('span', 'stage'), node('span', 'count'));
  place.replaceChildren(panel);
  return panel;
}

/**
 * @param {HTMLElement} place
 * @param {import('./session.js').Tutor[]} tutors
 * @param {Record<string, string>} engines
 * @param {(tutor: import('./session.js').Tutor) => void} choose
 */
export function showTutors(place, tutors, engines, choose) {
  const panel = node('div', 'choice');
  const title = panel.appendChild(node('h2'));
  say(title, 'welcome.title');
  title.tabIndex = -1;
  say(panel.appendChild(node('p', 'intro')), tutors.length ? 'welcome.intro' : 'welcome.none');
  const list = panel.appendChild(node('ul', 'cards'));
  list.append(...tutors.map((tutor) => card(tutor, choose)));
  const running = engineNames(engines);
  if (running) say(panel.appendChild(node('p', 'fine')), 'welcome.engines', { engines: running });
  place.replaceChildren(panel);
}

function card(tutor, choose) {
  const item = node('li');
  const press = item.appendChild(node('button', 'card'));
  press.type = 'button';
  press.dataset.tutor = tutor.id;
  say(press, 'welcome.choose', { name: tutor.name }, 'aria-label');
  const face = drawFace(tutor.id);
  face.setAttribute('aria-hidden', 'true');
  const words = node('span', 'card-words');
  const name = words.appendChild(node('span', 'card-name', tutor.name));
  name.lang = languageOf(tutor.name);
  const greeting = words.appendChild(node('span', 'card-greeting', tutor.greeting));
  greeting.lang = languageOf(tutor.greeting);
  const languages = () => tutor.languages.map((tag) => nameOf(tag)).join(t('list.comma'));
  say(words.appendChild(node('span', 'card-languages')), 'welcome.answersIn', { languages });
  press.append(face, words);
  press.addEventListener('click', () => choose(tutor));
  return item;
}

/**
 * A problem in place of the tutors.
 * @param {HTMLElement} place
 * @param {string} key
 * @param {Record<string, unknown>} params
 * @param {{key: string, act: () => void} | null} offer
 */
export function showProblem(place, key, params, offer) {
  const panel = node('div', 'panel');
  panel.setAttribute('role', 'alert');
  say(panel.appendChild(node('p', 'problem')), key, params);
  if (offer) panel.append(button(offer.key, offer.act));
  place.replaceChildren(panel);
}

/** The name of a language in the interface's language. @param {string} tag */
export function nameOf(tag) {
  const key = `name.${tag.slice(0, 2)}`;
  const name = t(key);
  return name === key ? tag : name;
}

/** What runs, as a line. @param {Record<string, unknown>} engines */
export function engineNames(engines) {
  return [...new Set(Object.values(engines).filter((name) => typeof name === 'string' && name))].join(' · ');
}
